"""What is published: no path of the machine, nothing damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ksteer_vllm import ProbeError, UsageError
from ksteer_vllm.bench.suite import Suite
from ksteer_vllm.hub.transfer import pull, push
from ksteer_vllm.probes.probe import Probe
from tests.support.fake_hub import FakeHub, at

MODEL = "/data/private/tiny-llama"


@pytest.mark.parametrize("base_model", [None, "someone/tiny-llama"])
def test_no_path_of_the_machine_is_published(
    hub: FakeHub, suite: Path, tmp_path: Path, base_model: str | None
) -> None:
    public = base_model or "tiny-llama"
    for path in Suite.open(suite).paths.values():
        probe = Probe.load(path)
        training = {"model": MODEL, "rows": 3, "layers": {"1": {"model": MODEL, "rows": 3}}}
        model = probe.metadata.model.model_copy(update={"name": MODEL})
        probe.with_metadata(model=model, training=training).save(path)
    options = {"tokenizer": "/data/private/tokenizer", "dtype": "float32", "max_model_len": 64}
    Suite(suite, Suite.open(suite).file.model_copy(update={"engine_options": options})).write()
    source = {"command": f"ksteer eval {suite}", "date": "today", "model": MODEL, "suite": "/data/private/s"}
    results = {"provenance": source, "cells": [1, 0.1], "command": "kept"}
    (suite / "calibration/results.json").write_text(json.dumps(results))
    lines = "\n".join(f"- {name}: {value}" for name, value in source.items())
    sample = "# Report\n\n- command: of a sample\n- model: of a sample\n"
    (suite / "calibration/results.md").write_text(f"{sample}\n## Provenance\n\n{lines}\n")
    before = {path: path.read_bytes() for path in suite.rglob("*") if path.is_file()}

    push(suite, "owner/suite", base_model=base_model, **at(hub))
    files = hub.files("owner/suite")
    assert [name for name, data in files.items() if b"/data/" in data or bytes(suite) in data] == []
    pull("owner/suite", tmp_path / "new", **at(hub))
    new, old = Suite.open(tmp_path / "new"), Suite.open(suite)
    for name, probe in new.probes.items():
        assert probe.metadata.model.name == public
        assert probe.metadata.training == {
            "model": public, "rows": 3, "layers": {"1": {"model": public, "rows": 3}},
        }  # fmt: skip
        assert probe.metadata.digest == old.probes[name].metadata.digest
    assert new.file.engine_options == {"dtype": "float32", "max_model_len": 64}
    assert json.loads(files["calibration/results.json"]) == {
        **results, "provenance": {"date": "today", "model": public},
    }  # fmt: skip
    assert files["calibration/results.md"].decode() == (
        f"{sample}\n## Provenance\n\n- date: today\n- model: {public}\n"
    )
    assert before == {path: path.read_bytes() for path in suite.rglob("*") if path.is_file()}


def test_results_that_cannot_be_read_are_not_published(hub: FakeHub, suite: Path) -> None:
    (suite / "calibration/results.json").write_text("command: /data/private")
    with pytest.raises(UsageError, match=r"calibration/results.json: Expecting value.*write the results"):
        push(suite, "owner/suite", **at(hub))
    assert not hub.requests


def test_a_damaged_folder_is_not_pushed(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    with (probe / "probe.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ProbeError, match="digest"):
        push(probe, "owner/tones", **at(hub))
    with pytest.raises(UsageError, match="neither"):
        push(tmp_path, "owner/tones", **at(hub))
    assert not hub.requests
