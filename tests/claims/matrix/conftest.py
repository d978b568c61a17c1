"""Tiny models with a probe each, and engines of this process. Engines live as long as their module."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.engines import prepare_environment

prepare_environment()

from ksteer_vllm import Probe  # noqa: E402
from testbed.models import make_model  # noqa: E402
from testbed.probes import random_probe  # noqa: E402
from tests.support.oracle import Oracle  # noqa: E402


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(family, seed) -> folder of its tiny model, made once."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: str, seed: int = 0) -> Path:
        path = root / f"{family}-{seed}"
        if not path.exists():
            make_model(family, path, seed)
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_probes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, Path]]:
    """Model folder -> {"tones": folder of a probe of its layer 1}."""
    root = tmp_path_factory.mktemp("probes")

    def folders(model: Path) -> dict[str, Path]:
        model_type = json.loads((model / "config.json").read_text())["model_type"]
        path = root / model_type
        if not path.exists():
            random_probe(model_type=model_type, layer=1, width=16).save(path)
        return {"tones": path}

    return folders


@pytest.fixture(scope="session")
def oracle_of(tiny_probes: Callable[[Path], dict[str, Path]]) -> Callable[[Path], Oracle]:
    """Model folder -> transformers with hooks and that model's probe."""

    def oracle(model: Path) -> Oracle:
        return Oracle(model, {name: Probe.load(path) for name, path in tiny_probes(model).items()})

    return oracle


@pytest.fixture(scope="session")
def llama(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


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
