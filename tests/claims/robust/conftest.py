"""Servers that the tests of robustness share: a plain one and two replicas with steering, side by side."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks.load.stage import Stage, prepare, steering_flags
from testbed.families import random_family_probe
from testbed.serving import Server, serve

API_KEY = "key-of-the-second-replica"
ADMIN_KEY = "admin-key-of-the-second-replica"


@dataclass(frozen=True)
class Deployment:
    """A plain server, and two replicas of one with steering.

    Both can load `churn-a`. Only the first has `churn-b`; `uneven` is another probe on each. The second
    asks for an API key, and for an admin key where something changes; their files are `api_key` and
    `admin_key`.
    """

    stage: Stage
    plain: Server
    first: Server
    second: Server
    second_probe_dir: Path
    api_key: Path
    admin_key: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {API_KEY}"}


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory, serving: None) -> Iterator[Deployment]:
    root = tmp_path_factory.mktemp("deployment")
    stage = prepare(root)
    other = replace(stage, probe_dir=root / "loadable-of-the-second")
    shutil.copytree(stage.probe_dir / "churn-a", other.probe_dir / "churn-a")
    for seed, probe_dir in enumerate((stage.probe_dir, other.probe_dir), start=200):
        random_family_probe("mlp", width=24, seed=seed).save(probe_dir / "uneven")
    keys = {"api": root / "api-key", "admin": root / "admin-key"}
    keys["api"].write_text(API_KEY + "\n")
    keys["admin"].write_text(ADMIN_KEY + "\n")
    guarded = ("--api-key", API_KEY, "--ksteer-admin-key-file", str(keys["admin"]))
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serve(stage.model, root / "plain.log")),
            stack.enter_context(serve(stage.model, root / "first.log", *steering_flags(stage))),
            stack.enter_context(serve(stage.model, root / "second.log", *steering_flags(other), *guarded)),
        ]
        for server in servers:
            server.wait_until_healthy()
        yield Deployment(stage, *servers, other.probe_dir, keys["api"], keys["admin"])
