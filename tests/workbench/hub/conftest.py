"""A hub of this process, and what is pushed to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ksteer_vllm.bench.suite import Suite, SuiteFile
from ksteer_vllm.data.rows import Message
from testbed.families import random_family_probe
from tests.support.fake_hub import FakeHub, fake_hub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        yield server


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    return random_family_probe("mlp").save(tmp_path / "tones")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two probes, the evaluation probe, a report, and files of other kinds that stay where they are."""
    folder = tmp_path / "suite"
    for index, (name, family) in enumerate((("mlp", "mlp"), ("caa", "vectors"), ("evaluation", "mlp"))):
        random_family_probe(family, seed=index).save(folder / name)
    file = SuiteFile(
        model="/data/models/tiny-llama",
        task="demo",
        data_digest="0" * 64,
        labels=("warm", "cold", "dry"),
        layers=(1,),
        prompts={"calibration": ("why?",), "evaluation": ((Message(role="user", content="how?"),),)},
    )
    Suite(folder, file).write()
    (folder / "calibration").mkdir()
    for name in ("results.md", "strengths.png", "journal.jsonl"):
        (folder / "calibration" / name).write_text(f"{name}\n")
    (folder / "calibration" / "results.json").write_text('{"judge": "probe"}\n')
    (folder / "activations").mkdir()
    (folder / "activations" / "part-0.safetensors").write_bytes(b"large")
    (folder / "mlp" / ".secret").write_text("no")
    return folder
