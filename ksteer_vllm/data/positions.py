"""Which positions of a row are recorded: all those steering edits, their mean, or the prompt's last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ksteer_vllm.data.chat import chat_text, is_rendered
from ksteer_vllm.data.rows import LabelledRow, Prompt
from ksteer_vllm.errors import DataError, UsageError, choices

__all__ = [
    "PROMPT_LAST",
    "REPLY",
    "REPLY_MEAN",
    "WINDOWS",
    "FirstPositions",
    "PromptLast",
    "ReplyMean",
    "ReplyPositions",
    "Window",
    "encode_prompt",
    "encode_reply",
    "encode_row",
    "window_of",
]


class Window(ABC):
    """Which tokens of a row are run, and which of their positions are recorded."""

    mean = False
    """One vector per row: the mean over its positions."""
    needs_reply = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Short, for folders and options."""

    @property
    @abstractmethod
    def text(self) -> str:
        """In words, for `probe.json`."""

    @abstractmethod
    def of(self, tokenizer: Any, row: LabelledRow) -> tuple[list[int], int, int]:
        """The tokens to run, and the half-open range of positions to record. Raises DataError."""


@dataclass(frozen=True)
class ReplyPositions(Window):
    """Prompt (P tokens) and reply (R tokens); recorded are the positions that steering generation edits."""

    @property
    def name(self) -> str:
        return "reply"

    @property
    def text(self) -> str:
        return (
            "P-1 to P-1+R: the forward passes that produce the R reply tokens and the one that ends the reply"
        )

    def of(self, tokenizer: Any, row: LabelledRow) -> tuple[list[int], int, int]:
        prompt, reply = encode_row(tokenizer, row)
        for name, tokens in (("prompt", prompt), ("reply", reply)):
            if not tokens:
                raise DataError(f"{name}: no tokens")
        return prompt + reply, len(prompt) - 1, len(prompt) + len(reply)


@dataclass(frozen=True)
class ReplyMean(ReplyPositions):
    """The same positions, of which one vector is kept: their mean. Its position is the first of them."""

    mean = True

    @property
    def name(self) -> str:
        return "reply-mean"

    @property
    def text(self) -> str:
        return "mean over P-1 to P-1+R: one vector per reply"


@dataclass(frozen=True)
class PromptLast(Window):
    """The prompt alone; recorded is its last token, whose forward pass produces the reply's first token."""

    needs_reply = False

    @property
    def name(self) -> str:
        return "prompt-last"

    @property
    def text(self) -> str:
        return "P-1: the last token of the prompt"

    def of(self, tokenizer: Any, row: LabelledRow) -> tuple[list[int], int, int]:
        prompt = encode_prompt(tokenizer, row.prompt)
        if not prompt:
            raise DataError("prompt: no tokens")
        return prompt, len(prompt) - 1, len(prompt)


@dataclass(frozen=True)
class FirstPositions(Window):
    """The reply's text alone, as a text prompt; recorded are its first `count` tokens.

    Leading special tokens (a beginning-of-sequence token) are not counted and not recorded: they are the
    same for every text, and so is the residual stream there. A trailing one is left off.
    """

    count: int

    @property
    def name(self) -> str:
        return f"first-{self.count}"

    @property
    def text(self) -> str:
        return f"the first {self.count} tokens of the text alone, after leading special tokens"

    def of(self, tokenizer: Any, row: LabelledRow) -> tuple[list[int], int, int]:
        tokens = list(tokenizer.encode(row.spoken))
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        own = [index for index, token in enumerate(tokens) if token not in special]
        if not own:
            raise DataError("reply: no tokens")
        first, end = own[0], min(own[0] + self.count, own[-1] + 1)
        return tokens[:end], first, end


REPLY = ReplyPositions()
REPLY_MEAN = ReplyMean()
PROMPT_LAST = PromptLast()
WINDOWS: dict[str, Window] = {window.name: window for window in (REPLY, REPLY_MEAN, PROMPT_LAST)}
"""The values of `--positions`."""


def window_of(name: str) -> Window:
    """The window of a name. Raises UsageError for a name that is not in WINDOWS."""
    if name not in WINDOWS:
        raise UsageError(f"positions: unknown {name[:80]!r}; known: {choices(name, WINDOWS)}")
    return WINDOWS[name]


def encode_prompt(
    tokenizer: Any, prompt: Prompt, template_arguments: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of a prompt, as in serving: a text as it is, a chat through the model's template.

    A text that has been through the template has its special tokens already, and gets no second ones.

    Args:
        tokenizer: The model's.
        prompt: A text or a chat.
        template_arguments: Further arguments of the chat template.

    Raises:
        DataError: If the model has no chat template, or it refuses the chat.
    """
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt, add_special_tokens=not is_rendered(tokenizer, prompt)))
    return list(tokenizer.encode(chat_text(tokenizer, prompt, template_arguments), add_special_tokens=False))


def encode_reply(tokenizer: Any, reply: str) -> list[int]:
    """Token ids of a reply's text, which is encoded apart from its prompt, as in serving."""
    return list(tokenizer.encode(reply, add_special_tokens=False))


def encode_row(tokenizer: Any, row: LabelledRow) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the reply. Raises DataError as `encode_prompt`, or without a reply."""
    return encode_prompt(tokenizer, row.prompt), encode_reply(tokenizer, row.spoken)
