"""Two servers with presets, each started when a test first needs it: one plain by default, one steered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from testbed.models import make_model
from testbed.probes import random_probe
from testbed.serving import Server, serve
from tests.server.http.parsing import serve_flags

API_KEY = "secret-of-clients"
ADMIN_KEY = "secret-of-admins"
OTHER_NAME = "tiny:other"
"""A second served name, with a colon."""

WARM = {"probe": "tones", "target": ["warm"], "alpha": 3.0}
PRESETS: dict[str, dict[str, Any]] = {
    "warm": WARM,
    "cold.v2": {"probe": "tones", "target": {"cold": 2}, "alpha": 3.0, "where": "both"},
    "both": {"stack": [{**WARM, "alpha": 2.0}, {"probe": "tones", "avoid": ["dry"], "method": "project"}]},
}


@dataclass(frozen=True)
class Folders:
    """presets: a YAML file; probes: a directory of the operator's with the folder `more`."""

    model: Path
    tones: Path
    presets: Path
    probes: Path
    work: Path

    @property
    def flags(self) -> tuple[str, ...]:
        return (
            "--served-model-name", "tiny", OTHER_NAME, "--plugin", "ksteer",
            "--ksteer-probe", f"tones={self.tones}", "--ksteer-layers", "1,2",
            "--ksteer-presets", str(self.presets), "--ksteer-probe-dir", str(self.probes),
        )  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    work = tmp_path_factory.mktemp("presets")
    random_probe().save(work / "tones")
    random_probe(layer=2, labels=("red", "blue"), seed=3).save(work / "probes" / "more")
    presets = work / "presets.yaml"
    presets.write_text(yaml.safe_dump(PRESETS, sort_keys=False))
    return Folders(make_model("llama", work / "model"), work / "tones", presets, work / "probes", work)


@pytest.fixture(scope="session")
def preset_server(folders: Folders, serving: None) -> Iterator[Server]:
    """No default, no keys; changes are allowed."""
    with serve(folders.model, folders.work / "presets.log", *folders.flags) as server:
        server.wait_until_healthy()
        yield server


@pytest.fixture(scope="session")
def default_server(folders: Folders, serving: None) -> Iterator[Server]:
    """Steers by default with `warm`; needs an API key, and an admin key for changes."""
    key = folders.work / "admin.key"
    key.write_text(f"{ADMIN_KEY}\n")
    flags = (
        "--ksteer-default", "warm", "--ksteer-admin-key-file", str(key), "--api-key", API_KEY,
        *(("--enable-scale-out",) if "--enable-scale-out" in serve_flags() else ()),
    )  # fmt: skip
    with serve(
        folders.model,
        folders.work / "default.log",
        *folders.flags,
        *flags,
        environment={"VLLM_SKIP_MODEL_NAME_VALIDATION": "1"},
    ) as server:
        server.wait_until_healthy()
        yield server


@pytest.fixture(scope="session")
def http(preset_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=preset_server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def default_http(default_server: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=default_server.url, timeout=60, headers=headers) as client:
        yield client
