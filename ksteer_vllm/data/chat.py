"""Chat messages as the text a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ksteer_vllm.data.rows import Message
from ksteer_vllm.errors import DataError

__all__ = ["chat_text"]


def chat_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The messages through the model's chat template, up to where the reply begins.

    Where the template refuses system messages, or leaves them out, they go to the head of the first message
    that follows. Raises DataError if the model has no chat template, or it refuses the messages even so.
    """
    system = [message.content for message in messages if message.role == "system"]
    try:
        text = _rendered(tokenizer, messages)
        if all(content.strip() in text for content in system):
            return text
    except DataError:
        if not system:
            raise
    others = [message for message in messages if message.role != "system"]
    if not others:
        return _rendered(tokenizer, messages)
    content = "\n\n".join([*system, others[0].content])
    return _rendered(tokenizer, [Message(role=others[0].role, content=content), *others[1:]])


def _rendered(tokenizer: Any, messages: Sequence[Message]) -> str:
    from jinja2 import TemplateError

    chat = [message.model_dump() for message in messages]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise DataError(f"prompt: the model's chat template refuses the chat: {error}") from None
    except ValueError as error:
        if getattr(tokenizer, "chat_template", None):
            raise
        raise DataError(
            "prompt: a chat, and the model has no chat template; take a chat model, or give prompts as texts "
            f"({str(error).splitlines()[0][:120]})"
        ) from None
