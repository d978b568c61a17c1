"""What is said of a probe that was made with prompts of another form than the server makes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ksteer_vllm.server.endpoints.prompt_forms import notes_on, warn_of_other_forms

TEMPLATE = "{{ messages }}"
SAME = {
    "raw": False,
    "chat_template": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
    "chat_template_kwargs": {"enable_thinking": False},
}


@pytest.mark.parametrize(
    ("made_with", "template", "arguments", "notes"),
    [
        (SAME, TEMPLATE, {"enable_thinking": False}, []),
        (None, TEMPLATE, {}, []),
        (SAME, None, {}, []),
        ({"raw": True}, TEMPLATE, {}, ["raw prompts"]),
        (SAME, TEMPLATE + " ", {"enable_thinking": False}, ["another chat template"]),
        (SAME, TEMPLATE, {}, ["chat_template_kwargs {'enable_thinking': False}"]),
    ],
)
def test_notes(made_with: Any, template: str | None, arguments: dict[str, Any], notes: list[str]) -> None:
    found = list(notes_on(made_with, template, arguments))
    assert len(found) == len(notes)
    assert all(part in note for part, note in zip(notes, found, strict=True))


def test_the_servers_own_template_is_compared(tmp_path: Path, heard: list[str]) -> None:
    probes: Any = {"knob": SimpleNamespace(training={"prompts": {**SAME, "chat_template_kwargs": {}}})}
    tokenizer = SimpleNamespace(chat_template=TEMPLATE)
    file = tmp_path / "other.jinja"
    file.write_text("another template")
    warn_of_other_forms(probes, tokenizer, SimpleNamespace(chat_template=None))
    assert heard == []
    warn_of_other_forms(probes, tokenizer, SimpleNamespace(chat_template=str(file)))
    assert any("probe knob: made with another chat template" in message for message in heard)
