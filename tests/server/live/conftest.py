"""Three probes in a directory, and a resolved configuration that starts with the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.config import EngineConfig
from tests.support.probes import random_probe

NAMES = ("first", "second", "third")


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probes")
    for seed, name in enumerate(NAMES):
        random_probe(seed=seed, default_alpha={"gradient": 2.0}).save(root / name)
    random_probe(labels=("calm", "wild"), seed=7, default_alpha={"gradient": 2.0}).save(root / "other-labels")
    random_probe(hidden_size=32).save(root / "misfit")
    random_probe(layer=3).save(root / "closed-layer")
    return root


@pytest.fixture
def config_of(directory: Path) -> Callable[..., EngineConfig]:
    def make(**options: Any) -> EngineConfig:
        fields = {"probes": {"a": str(directory / "first")}, "layers": [1, 2], "probe_dirs": [str(directory)]}
        return resolve_config(EngineConfig.parse({**fields, **options}), random_probe().metadata.model)

    return make
