"""Chat messages as the text a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.data.rows import Message
from ksteer_vllm.errors import DataError

__all__ = ["chat_text", "is_rendered"]


def chat_text(tokenizer: Any, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None) -> str:
    """The messages through the model's chat template, up to where the reply begins.

    Where the template refuses system messages, or leaves them out, they go to the head of the first message
    that follows.

    Args:
        tokenizer: The model's.
        messages: The chat.
        arguments: Further arguments of the template, such as `enable_thinking`.

    Raises:
        DataError: If the model has no chat template, or it refuses the messages even so, and for a message
            that has been through the template already.
    """
    given = dict(arguments or {})
    for message in messages:
        if _begins_special(tokenizer, message.content):
            raise DataError(
                f"prompt: {message.content[:40]!r} has been through the model's chat template already; give "
                "it as a text (without --chat), or give the messages themselves"
            )
    system = [message.content for message in messages if message.role == "system"]
    try:
        text = _rendered(tokenizer, messages, given)
        if all(content.strip() in text for content in system):
            return text
    except DataError:
        if not system:
            raise
    others = [message for message in messages if message.role != "system"]
    if not others:
        return _rendered(tokenizer, messages, given)
    content = "\n\n".join([*system, others[0].content])
    return _rendered(tokenizer, [Message(role=others[0].role, content=content), *others[1:]], given)


def is_rendered(tokenizer: Any, text: str) -> bool:
    """Whether a text is what the model's chat template wrote, with all the special tokens it is to have.

    It begins with the beginning-of-sequence token, or, where the template writes none, with another of the
    template's special tokens. Encoding it as any text would add a second one at the beginning.
    """
    first: str | None = getattr(tokenizer, "bos_token", None)
    if first and _writes(tokenizer, first):
        return text.lstrip().startswith(first)
    return _begins_special(tokenizer, text)


def _begins_special(tokenizer: Any, text: str) -> bool:
    """Whether a text begins with a special token that the chat template writes."""
    begins = [
        token for token in getattr(tokenizer, "all_special_tokens", ()) if text.lstrip().startswith(token)
    ]
    return any(_writes(tokenizer, token) for token in begins)


def _writes(tokenizer: Any, token: str) -> bool:
    """Whether the chat template, if there is one, writes a special token."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return token in template or (token == tokenizer.bos_token and "bos_token" in template)


def _rendered(tokenizer: Any, messages: Sequence[Message], arguments: dict[str, Any]) -> str:
    from jinja2 import TemplateError

    chat = [message.model_dump() for message in messages]
    try:
        options = {**arguments, "tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(chat, **options))
    except TemplateError as error:
        raise DataError(f"prompt: the model's chat template refuses the chat: {error}") from None
    except ValueError as error:
        if getattr(tokenizer, "chat_template", None):
            raise
        raise DataError(
            "prompt: a chat, and the model has no chat template; take a chat model, or give prompts as texts "
            f"({str(error).splitlines()[0][:120]})"
        ) from None
