"""One server whose metrics the tests of this directory read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testbed.models import make_model
from testbed.probes import random_probe
from testbed.serving import Server, serve

PRESETS = """\
warm: {probe: tones, target: [warm], alpha: 2.0}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, serving: None) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("metrics")
    random_probe().save(work / "tones")
    random_probe(layer=2, labels=("calm", "loud"), seed=1, width=32).save(work / "moods")
    (work / "presets.yaml").write_text(PRESETS)
    flags = (
        "--plugin", "ksteer", "--ksteer-probe", f"tones={work / 'tones'}",
        "--ksteer-probe", f"moods={work / 'moods'}", "--ksteer-layers", "1,2",
        "--ksteer-presets", str(work / "presets.yaml"), "--ksteer-sample-reports", "1",
    )  # fmt: skip
    with serve(make_model("llama", work / "model"), work / "server.log", *flags) as running:
        running.wait_until_healthy()
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parents[3]
