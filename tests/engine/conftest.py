"""Tiny models, probes and engines shared by the engine tests. Engines live as long as their module."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import prepare_environment, start_engine

prepare_environment()

from ksteer_vllm import Probe  # noqa: E402
from testbed.models import VOCAB_SIZE, make_model  # noqa: E402
from testbed.probes import random_probe  # noqa: E402


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> folder of its tiny model, made once."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            make_model(family, root / family)
        return root / family

    return folder


@pytest.fixture(scope="session")
def probe_folders(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Path]]:
    """family -> {"tones": a probe of layer 1, "moods": a wider one of layer 2} for its tiny model."""
    root = tmp_path_factory.mktemp("probes")

    def folders(family: str) -> dict[str, Path]:
        model_type = json.loads((model_folder(family) / "config.json").read_text())["model_type"]
        narrow = random_probe(model_type=model_type, layer=1, width=16)
        wide = random_probe(model_type=model_type, layer=2, width=40, labels=("glad", "sad"), seed=1)
        found = {}
        for name, probe in (("tones", narrow), ("moods", wide)):
            found[name] = root / family / name
            if not found[name].exists():
                probe.save(found[name])
        return found

    return folders


@pytest.fixture(scope="session")
def probes(probe_folders: Callable[[str], dict[str, Path]]) -> dict[str, Path]:
    """The probe folders of the llama model."""
    return probe_folders("llama")


@pytest.fixture(scope="session")
def llama(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llama")


@pytest.fixture(scope="module")
def engine(llama: Path, probes: dict[str, Path]) -> Any:
    """A steered llama engine, every layer open."""
    return start_engine(llama, probes, steering={"layers": "all"})


@pytest.fixture(scope="module")
def plain_engine(llama: Path) -> Any:
    """The same engine without steering; the plugin is installed."""
    return start_engine(llama)


@pytest.fixture
def vllm_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set environment variables for one test; vLLM remembers their values once an engine has started."""
    from vllm import envs

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        envs.disable_envs_cache()

    yield change
    envs.disable_envs_cache()


@pytest.fixture
def prompts() -> Callable[..., list[list[int]]]:
    """(count, length, seed) -> random token prompts that share no block."""

    def make(count: int, length: int, seed: int = 0) -> list[list[int]]:
        source = random.Random(f"{count} {length} {seed}")
        return [[source.randrange(4, VOCAB_SIZE) for _ in range(length)] for _ in range(count)]

    return make


@pytest.fixture(scope="session")
def load_probes() -> Callable[[dict[str, Path]], dict[str, Probe]]:
    return lambda folders: {name: Probe.load(folder) for name, folder in folders.items()}
