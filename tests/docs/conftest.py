"""What commands and specs are checked against: probes like the demo's, and a folder as a reader has it."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from ksteer_vllm import ModelIdentity
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.data.behaviours import read_behaviours
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.experiments.knob.plan import RECIPE
from testbed.families import at_layers
from testbed.probes import random_probe
from tests.docs.blocks import ROOT

SIZE = {"hidden_size": 128, "num_layers": 6}
"""The shipped model's, on which the pages' programs run."""
MODEL = ModelIdentity(name="demo-out/model", model_type="llama", **SIZE)
LAYERS = (1, 2, 3)
SCALES = dict.fromkeys(LAYERS, 11.0)


@pytest.fixture(scope="session")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe with the labels and the default edit of the one `ksteer demo` leaves, and a network at each of
    several layers; its weights are random."""
    with as_file(files("ksteer_vllm") / "demo" / "smollm2" / "behaviours.yaml") as file:
        labels = tuple(read_behaviours(file).names)
    networks = [
        random_probe(
            layer=layer,
            labels=labels,
            seed=layer,
            activation_scale=SCALES,
            metric_scale={"variance": SCALES},
            default_edit={**RECIPE, "alpha": 0.02},
            label_alpha={"excited": 0.04},
            **SIZE,
        )
        for layer in LAYERS
    ]
    return at_layers(*networks).save(tmp_path_factory.mktemp("probe") / "voices")


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random probe with the labels, layer and size of what `ksteer demo --model shipped` leaves."""
    strengths = {"gradient": 0.8, "add": 0.3}
    probe = random_probe(layer=2, labels=TONES, default_alpha=strengths, **SIZE)
    return probe.save(tmp_path_factory.mktemp("probe") / "tones")


@pytest.fixture
def registry_of(voices: Path, tones: Path) -> object:
    """presets -> the registry of a server that has them, the demo's probes, and the tutorial's `knob`, whose
    labels on the page the demo has."""
    probes = {"voices": str(voices), "knob": str(voices), "tones": str(tones)}

    def registry(presets: object = None) -> Registry:
        config = EngineConfig.parse({"probes": probes, "presets": presets or {}})
        return Registry.from_config(resolve_config(config, MODEL))

    return registry


@pytest.fixture
def reader(tmp_path: Path, voices: Path, tones: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of somebody who does what the pages say."""
    for folder, probe in {"demo-out/probe": voices, "probes/voices": voices, "probes/tones": tones}.items():
        shutil.copytree(probe, tmp_path / folder)
    shutil.copy(ROOT / "examples" / "presets.yaml", tmp_path / "presets.yaml")
    (tmp_path / "admin-key").write_text("a key\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path
