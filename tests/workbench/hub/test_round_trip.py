"""Push and pull with the real huggingface_hub client, against a hub of this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ksteer_vllm.bench.suite import Suite
from ksteer_vllm.hub.transfer import pull, push
from ksteer_vllm.probes.probe import Probe
from tests.support.fake_hub import TOKEN, FakeHub, at


def test_a_probe_comes_back_as_it_was(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    url = push(probe, "owner/tones", **at(hub))
    assert url.startswith(f"{hub.endpoint}/owner/tones/commit/")
    assert hub.repositories["owner/tones"]["private"]
    pulled = pull("owner/tones", tmp_path / "new", **at(hub))
    assert Probe.load(tmp_path / "new").metadata == Probe.load(probe).metadata
    assert pulled.digests == {"": Probe.load(probe).metadata.digest}
    assert pulled.revision == url.rpartition("/")[2]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "README.md", "probe.json", "probe.safetensors",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "tones"]


def test_the_model_card_says_what_it_is(hub: FakeHub, probe: Path) -> None:
    push(probe, "owner/tones", base_model="someone/tiny-llama", **at(hub))
    card = hub.files("owner/tones")["README.md"].decode()
    loaded = Probe.load(probe)
    for piece in (
        "library_name: ksteer-vllm",
        'base_model: "someone/tiny-llama"',
        "# owner/tones",
        "warm, cold, dry",
        loaded.metadata.digest[:12],
        "ksteer pull owner/tones",
        'LLM("someone/tiny-llama"',
    ):
        assert piece in card
    assert json.loads(hub.files("owner/tones")["probe.json"])["model"]["name"] == "someone/tiny-llama"


def test_a_suite_comes_back_with_its_write_ups_and_nothing_else(
    hub: FakeHub, suite: Path, tmp_path: Path
) -> None:
    push(suite, "owner/suite", private=False, **at(hub))
    assert set(hub.files("owner/suite")) == {
        ".gitattributes", "README.md", "suite.json",
        "mlp/probe.json", "mlp/probe.safetensors",
        "caa/probe.json", "caa/probe.safetensors",
        "evaluation/probe.json", "evaluation/probe.safetensors",
        "calibration/results.md", "calibration/results.json", "calibration/strengths.png",
    }  # fmt: skip
    assert not hub.repositories["owner/suite"]["private"]
    assert not any(b"/data/models" in data for data in hub.files("owner/suite").values())
    pulled = pull("owner/suite", tmp_path / "new", **at(hub))
    assert set(pulled.digests) == {"mlp", "caa", "evaluation"}
    found, before = Suite.open(tmp_path / "new"), Suite.open(suite)
    assert found.file.prompts == before.file.prompts
    assert {name: it.metadata.digest for name, it in found.probes.items()} == {
        name: it.metadata.digest for name, it in before.probes.items()
    }
    assert (tmp_path / "new/calibration/results.md").read_text() == "results.md\n"


def test_a_write_up_of_an_earlier_version_comes_along(hub: FakeHub, suite: Path, tmp_path: Path) -> None:
    push(suite, "owner/suite", **at(hub))
    hub.commit("owner/suite", {"layers/report.md": b"as it was called then"})
    pull("owner/suite", tmp_path / "new", **at(hub))
    assert (tmp_path / "new/layers/report.md").read_bytes() == b"as it was called then"


COMMANDS = """
import json, sys
from typer.testing import CliRunner
from ksteer_vllm.cli import app
found = [CliRunner().invoke(app, command) for command in json.loads(sys.argv[1])]
print(json.dumps([[one.exit_code, one.stdout, one.stderr] for one in found]))
"""


def test_the_commands(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT names the hub, as for every program that uses its client."""
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "h")}
    commands = [
        ["push", str(probe), "owner/tones", "--public", "--message", "First"],
        ["pull", "owner/tones", "--out", str(tmp_path / "new")],
        ["pull", "owner/nothing", "--out", str(tmp_path / "none")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env={**os.environ, **settings}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    pushed, pulled, refused = json.loads(done.stdout.splitlines()[-1])
    assert pushed[0] == 0, pushed
    assert f"{hub.endpoint}/owner/tones/commit/" in pushed[1]
    assert not hub.repositories["owner/tones"]["private"]
    assert pulled[0] == 0, pulled
    assert Probe.load(tmp_path / "new").metadata.digest in pulled[1]
    assert refused[0] == 2
    assert refused[2].splitlines()[-1].startswith("ksteer: owner/nothing on http")
