"""What commands and specs are checked against: a probe like the demo's, and a folder as a reader has it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ksteer_vllm import ModelIdentity
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.demo.lexicon import TONES
from testbed.probes import random_probe
from tests.docs.blocks import ROOT

MODEL = ModelIdentity(name="demo-out/model", model_type="llama", hidden_size=128, num_layers=6)


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe with the demo probe's labels, layer and size; its weights are random."""
    folder = tmp_path_factory.mktemp("probe") / "tones"
    probe = random_probe(
        layer=2,
        labels=TONES,
        hidden_size=128,
        num_layers=6,
        default_alpha={"gradient": 0.8, "add": 0.3},
        metric_scale={"variance": {2: 11.0}},
    )
    probe.save(folder)
    return folder


@pytest.fixture
def registry_of(tones: Path) -> object:
    """presets -> the registry of a server that has them and the demo's probe."""

    def registry(presets: object = None) -> Registry:
        config = EngineConfig.parse({"probes": {"tones": str(tones)}, "presets": presets or {}})
        return Registry.from_config(resolve_config(config, MODEL))

    return registry


@pytest.fixture
def reader(tmp_path: Path, tones: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of somebody who does what the pages say."""
    for probe in ("demo-out/probe", "probes/tones"):
        shutil.copytree(tones, tmp_path / probe)
    shutil.copy(ROOT / "examples" / "presets.yaml", tmp_path / "presets.yaml")
    (tmp_path / "admin-key").write_text("a key\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path
