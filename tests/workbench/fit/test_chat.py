"""Chat templates: those that take system messages, those that refuse or drop them, and none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import Environment, TemplateError

from ksteer_vllm.data.chat import chat_text
from ksteer_vllm.data.rows import Message
from ksteer_vllm.errors import DataError

SYSTEM = Message(role="system", content="Be dry.")
USER = Message(role="user", content="How?")
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
REFUSING = "{% if messages[0].role == 'system' %}{{ refuse('no system role') }}{% endif %}" + PLAIN
DROPPING = PLAIN.replace("<{{ m.role }}>{{ m.content }}",
                         "{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}")  # fmt: skip


def _tokenizer(template: str | None) -> Any:
    def refuse(why: str) -> None:
        raise TemplateError(why)

    def apply(
        chat: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool, **arguments: Any
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        if template is None:
            raise ValueError("tokenizer.chat_template is not set")
        return Environment().from_string(template).render(messages=chat, refuse=refuse, **arguments)

    return SimpleNamespace(apply_chat_template=apply, chat_template=template)


def test_a_template_that_takes_system_messages_gets_them() -> None:
    assert chat_text(_tokenizer(PLAIN), [SYSTEM, USER]) == "<system>Be dry.<user>How?<assistant>"


def test_arguments_reach_the_template_whatever_becomes_of_system_messages() -> None:
    mode = "[{{ mode }}]"
    assert chat_text(_tokenizer(mode + PLAIN), [USER], {"mode": "calm"}).startswith("[calm]<user>")
    found = chat_text(_tokenizer(mode + DROPPING), [SYSTEM, USER], {"mode": "calm", "tokenize": True})
    assert found == "[calm]<user>Be dry.\n\nHow?<assistant>"


@pytest.mark.parametrize("template", [REFUSING, DROPPING])
def test_else_they_head_the_first_message(template: str) -> None:
    assert chat_text(_tokenizer(template), [SYSTEM, USER]) == "<user>Be dry.\n\nHow?<assistant>"
    assert chat_text(_tokenizer(template), [USER]) == "<user>How?<assistant>"


def test_what_cannot_be_rendered_is_refused() -> None:
    with pytest.raises(DataError, match="the model has no chat template; take a chat model"):
        chat_text(_tokenizer(None), [USER])
    with pytest.raises(DataError, match="refuses the chat: no system role"):
        chat_text(_tokenizer(REFUSING), [SYSTEM])
