"""How a question and an instruction become the text a model reads: through a chat template, or plainly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ksteer_vllm.data.chat import chat_text
from ksteer_vllm.data.rows import Message
from ksteer_vllm.errors import DataError, UsageError

__all__ = ["Form", "PromptForm", "TemplateChoice"]


class Form(Protocol):
    """How questions become prompts: texts as the model reads them, special tokens included."""

    def plain(self, question: str) -> str: ...

    def instructed(self, instruction: str, question: str) -> str: ...

    def described(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TemplateChoice:
    """What the caller says of the chat template.

    Attributes:
        raw: Take questions as they are, without a template.
        template: A chat template, instead of the model's own.
        arguments: Further arguments of the template, such as `enable_thinking`.
    """

    raw: bool = False
    template: str | None = None
    arguments: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.raw and (self.template is not None or self.arguments is not None):
            raise UsageError("raw: leaves the chat template out, so there is none to choose or to configure")


class PromptForm:
    """The form of every prompt of one knob; plain where the model has no chat template and none was given.

    Args:
        tokenizer: The model's.
        choice: What the caller says.
    """

    def __init__(self, tokenizer: Any, choice: TemplateChoice) -> None:
        text = choice.template or getattr(tokenizer, "chat_template", None)
        self.raw = choice.raw or not text
        self._chosen = choice.template is not None
        self._template = None if self.raw else _Template(tokenizer, str(text), dict(choice.arguments or {}))

    @property
    def name(self) -> str:
        """In words, after `prompts go`."""
        if self.raw:
            return "to the model as they are"
        return f"through {'the chat template given' if self._chosen else 'the chat template of the model'}"

    def plain(self, question: str) -> str:
        """The question alone."""
        if self._template is None:
            return question
        return chat_text(self._template, [Message(role="user", content=question)])

    def instructed(self, instruction: str, question: str) -> str:
        """The question and an instruction after it, in one message.

        A system message would be the usual place, but small models hardly heed it: SmolLM2-135M, asked for a
        pirate, a list, exclamations or the first person, showed them in 0 to 19 % of replies with one, and in
        up to 81 % with the instruction behind the question (16 questions a phrasing).
        """
        return self.plain(f"{question} {instruction}")

    def chat(self, messages: Sequence[Message]) -> str:
        """A whole chat. Raises DataError in the plain form."""
        if self._template is None:
            raise DataError(
                "prompt: a chat, and prompts are taken as they are; give texts, or leave --raw out"
            )
        return chat_text(self._template, messages)

    def described(self) -> dict[str, Any]:
        """What the probe keeps of it: plain JSON, the template by its SHA-256."""
        if self._template is None:
            return {"raw": True}
        digest = hashlib.sha256(self._template.chat_template.encode()).hexdigest()
        return {"raw": False, "chat_template": digest, "chat_template_kwargs": self._template.arguments}


class _Template:
    """As much of a tokenizer as `chat_text` needs, with a template and arguments that were chosen."""

    def __init__(self, tokenizer: Any, chat_template: str, arguments: dict[str, Any]) -> None:
        self.chat_template, self.arguments = chat_template, arguments
        self.bos_token = tokenizer.bos_token
        self.all_special_tokens = tokenizer.all_special_tokens
        self._apply = tokenizer.apply_chat_template

    def apply_chat_template(self, chat: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        return self._apply(chat, chat_template=self.chat_template, **{**self.arguments, **options})
