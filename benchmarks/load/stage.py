"""The tiny model, the probes, and the two servers of the load test."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.changes import FOLDERS
from benchmarks.load.specs import PRESETS
from testbed.families import random_family_probe, write_probes
from testbed.models import make_model
from testbed.serving import Server, serve

__all__ = ["Stage", "plain_server", "prepare", "steering_flags", "steering_server"]


@dataclass(frozen=True)
class Stage:
    """Folders: the model, named probes, and those that are loaded while the server runs."""

    root: Path
    model: Path
    probes: dict[str, Path]
    probe_dir: Path
    presets: Path


def prepare(root: Path) -> Stage:
    """Write everything the servers need."""
    model = make_model("llama", root / "model")
    probe_dir = root / "loadable"
    for seed, name in enumerate(FOLDERS, start=100):
        random_family_probe("mlp", width=24, seed=seed).save(probe_dir / name)
    presets = root / "presets.yaml"
    presets.write_text(json.dumps(PRESETS))  # which is YAML, too
    return Stage(root, model, write_probes(root / "probes"), probe_dir, presets)


def steering_flags(stage: Stage) -> list[str]:
    flags = ["--plugin", "ksteer", "--ksteer-layers", "all", "--ksteer-max-probes", "16"]
    flags += ["--ksteer-max-stages", "4", "--ksteer-presets", str(stage.presets)]
    flags += ["--ksteer-probe-dir", str(stage.probe_dir)]
    for name, folder in stage.probes.items():
        flags += ["--ksteer-probe", f"{name}={folder}"]
    return flags


AS_BY_DEFAULT = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "5"}
"""Seconds; the tests' servers wait longer, and uvicorn keeps a broken connection's objects that long."""


@contextlib.contextmanager
def plain_server(stage: Stage) -> Iterator[Server]:
    with serve(stage.model, stage.root / "plain.log", environment=AS_BY_DEFAULT) as server:
        server.wait_until_healthy()
        yield server


@contextlib.contextmanager
def steering_server(stage: Stage) -> Iterator[Server]:
    flags = steering_flags(stage)
    with serve(stage.model, stage.root / "steering.log", *flags, environment=AS_BY_DEFAULT) as server:
        server.wait_until_healthy()
        yield server
