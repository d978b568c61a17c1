"""A prompt that has been through the chat template already: no second beginning-of-sequence token."""

from __future__ import annotations

from typing import Any

import pytest

from ksteer_vllm.data.positions import encode_prompt
from ksteer_vllm.data.rows import Message
from ksteer_vllm.errors import DataError

LLAMA_3 = "{{ bos_token }}{% for m in messages %}<|start|>{{ m.content }}{% endfor %}"
MISTRAL = "<s>{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


class Tokenizer:
    """Words for tokens; a beginning-of-sequence token is added unless that is turned off."""

    def __init__(self, template: str | None, bos: str | None = "<s>") -> None:
        self.chat_template, self.bos_token = template, bos
        self.all_special_tokens = [bos or "<|im_start|>", "<|im_start|>", "<|im_end|>", "<|start|>"]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[Any]:
        first = [self.bos_token] if add_special_tokens and self.bos_token else []
        return first + text.replace("<s>", "<s> ").split()

    def apply_chat_template(self, chat: list[dict[str, str]], **_: Any) -> str:
        return f"{self.bos_token} {chat[-1]['content']}"


@pytest.mark.parametrize(
    ("template", "bos", "text", "begins"),
    [
        (LLAMA_3, "<s>", "<s><|start|> How?", ["<s>", "<|start|>"]),
        (LLAMA_3, "<s>", "\n<s><|start|> How?", ["<s>", "<|start|>"]),
        (LLAMA_3, "<s>", "<|start|> How?", ["<s>", "<|start|>"]),  # without the token the template writes
        (LLAMA_3, "<s>", "How?", ["<s>", "How?"]),
        (MISTRAL, "<s>", "<s>[INST] How? [/INST]", ["<s>", "[INST]"]),
        (CHATML, "<s>", "<|im_start|> How?", ["<|im_start|>", "How?"]),
        (CHATML, "<s>", "How is <|im_start|> used?", ["<s>", "How"]),
        (CHATML, "<|im_start|>", "<|im_start|> How?", ["<|im_start|>", "How?"]),
        (None, "<s>", "<s> How?", ["<s>", "<s>"]),  # nothing renders it: a text as it is
        (CHATML, None, "How?", ["How?"]),
    ],
)
def test_special_tokens_at_the_beginning_are_not_doubled(
    template: str | None, bos: str | None, text: str, begins: list[str]
) -> None:
    assert encode_prompt(Tokenizer(template, bos), text)[: len(begins)] == begins


def test_a_rendered_text_is_not_rendered_again() -> None:
    with pytest.raises(
        DataError, match=r"has been through the model's chat template already.*without --chat"
    ):
        encode_prompt(Tokenizer(CHATML), (Message(role="user", content="<|im_start|>user How?"),))
    assert encode_prompt(Tokenizer(CHATML), (Message(role="user", content="How?"),)) == ["<s>", "How?"]
