"""The speaker of an engine of this process, without one: how it makes prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ksteer_vllm import UsageError
from ksteer_vllm.bench.chat import in_process
from ksteer_vllm.bench.chat.speaker import ChatPlan
from ksteer_vllm.data.rows import Message
from testbed.probes import random_probe

MADE_WITH = {"prompts": {"raw": False, "chat_template_kwargs": {"enable_thinking": False}}}


@pytest.mark.parametrize(
    ("training", "given", "used"),
    [
        (MADE_WITH, None, {"enable_thinking": False}),
        (MADE_WITH, {"enable_thinking": True, "date": "today"}, {"enable_thinking": True, "date": "today"}),
        ({}, None, {}),
        ({"prompts": {"raw": True}}, None, {}),
        ({"prompts": ["strange"]}, None, {}),
    ],
    ids=str,
)
def test_chats_go_through_the_template_as_the_probe_was_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    training: dict[str, Any],
    given: dict[str, Any] | None,
    used: dict[str, Any],
) -> None:
    seen: list[dict[str, Any]] = []

    class Tokenizer:
        def apply_chat_template(self, chat: list[dict[str, str]], **options: Any) -> str:
            seen.append(options)
            return chat[-1]["content"]

        def encode(self, text: str, **_: Any) -> list[int]:
            return [0] * len(text)

    model = SimpleNamespace(max_model_len=1)
    llm = SimpleNamespace(get_tokenizer=Tokenizer, llm_engine=SimpleNamespace(model_config=model))
    monkeypatch.setattr(in_process, "start_engine", lambda *_, **__: llm)
    folder = random_probe(training=training).save(tmp_path / "tones")
    speaker = in_process.EngineSpeaker.start(folder, "a model", ChatPlan(), {}, given)
    with pytest.raises(UsageError, match="the engine holds 1"):
        list(speaker.reply((Message(role="user", content="How?"),), None, None))
    assert seen == [{**used, "tokenize": False, "add_generation_prompt": True}]
