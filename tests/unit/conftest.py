"""Three probes in a directory, and a resolved configuration that starts with the first.

What needs torch is imported where it is used: the tests marked `pure` run without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.config import EngineConfig, ResolvedConfig


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.probe_directory import write_directory

    return write_directory(tmp_path_factory.mktemp("probes"))


@pytest.fixture
def config_of(directory: Path) -> Callable[..., ResolvedConfig]:
    from ksteer_vllm.admission.resolve import resolve_config
    from testbed.probes import random_probe

    def make(**options: Any) -> ResolvedConfig:
        fields = {"probes": {"a": str(directory / "first")}, "layers": [1, 2], "probe_dirs": [str(directory)]}
        return resolve_config(EngineConfig.parse({**fields, **options}), random_probe().metadata.model)

    return make


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """The messages our logger has been given so far. caplog hears them or not, as vLLM is imported or not:
    vLLM's loggers do not propagate."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    listener = Listener()
    logger = logging.getLogger("vllm.ksteer")
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    yield messages
    logger.removeHandler(listener)
    logger.setLevel(level)
