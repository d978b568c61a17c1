"""Push and pull with the real huggingface_hub client, against a hub of this process."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import ConfigError, ProbeError
from ksteer_vllm.artifact import Artifact
from ksteer_vllm.fit.data import Message
from ksteer_vllm.hub import pull, push
from ksteer_vllm.study.suite import Suite, SuiteFile
from tests.support.artifacts import random_artifact
from tests.support.fake_hub import FakeHub, fake_hub

TOKEN = "hf_of_nobody"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        yield server


def at(hub: FakeHub) -> dict[str, Any]:
    return {"endpoint": hub.endpoint, "token": TOKEN}


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    return random_artifact("mlp").save(tmp_path / "tones")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two artifacts, the evaluation probe, a report, and files of other kinds that stay where they are."""
    folder = tmp_path / "suite"
    for index, (name, family) in enumerate((("mlp", "mlp"), ("caa", "vectors"), ("evaluation", "mlp"))):
        random_artifact(family, seed=index).save(folder / name)
    file = SuiteFile(
        model="/data/models/tiny-llama",
        task="demo",
        data_digest="0" * 64,
        labels=("warm", "cold", "dry"),
        layers=(1,),
        prompts={"calibration": ("why?",), "evaluation": ((Message(role="user", content="how?"),),)},
    )
    Suite(folder, file).write()
    (folder / "calibration").mkdir()
    for name in ("report.md", "results.json", "strengths.png", "journal.jsonl"):
        (folder / "calibration" / name).write_text(f"{name}\n")
    (folder / "activations").mkdir()
    (folder / "activations" / "part-0.safetensors").write_bytes(b"large")
    (folder / "mlp" / ".secret").write_text("no")
    return folder


def test_a_probe_comes_back_as_it_was(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    url = push(probe, "owner/tones", **at(hub))
    assert url.startswith(f"{hub.endpoint}/owner/tones/commit/")
    assert hub.repositories["owner/tones"]["private"]
    pulled = pull("owner/tones", tmp_path / "new", **at(hub))
    assert Artifact.load(tmp_path / "new").metadata == Artifact.load(probe).metadata
    assert pulled.digests == {"": Artifact.load(probe).metadata.digest}
    assert pulled.revision == url.rpartition("/")[2]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "README.md", "probe.json", "probe.safetensors",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "tones"]


def test_the_model_card_says_what_it_is(hub: FakeHub, probe: Path) -> None:
    push(probe, "owner/tones", base_model="someone/tiny-llama", **at(hub))
    card = hub.files("owner/tones")["README.md"].decode()
    artifact = Artifact.load(probe)
    for piece in (
        "library_name: ksteer-vllm",
        'base_model: "someone/tiny-llama"',
        "# owner/tones",
        "warm, cold, dry",
        artifact.metadata.digest[:12],
        "ksteer pull owner/tones",
        'LLM("someone/tiny-llama"',
    ):
        assert piece in card
    assert json.loads(hub.files("owner/tones")["probe.json"])["model"]["name"] == "someone/tiny-llama"


def test_a_suite_comes_back_with_its_reports_and_nothing_else(
    hub: FakeHub, suite: Path, tmp_path: Path
) -> None:
    push(suite, "owner/suite", private=False, **at(hub))
    assert set(hub.files("owner/suite")) == {
        ".gitattributes", "README.md", "suite.json",
        "mlp/probe.json", "mlp/probe.safetensors",
        "caa/probe.json", "caa/probe.safetensors",
        "evaluation/probe.json", "evaluation/probe.safetensors",
        "calibration/report.md", "calibration/results.json", "calibration/strengths.png",
    }  # fmt: skip
    assert not hub.repositories["owner/suite"]["private"]
    assert not any(b"/data/models" in data for data in hub.files("owner/suite").values())
    pulled = pull("owner/suite", tmp_path / "new", **at(hub))
    assert set(pulled.digests) == {"mlp", "caa", "evaluation"}
    found, before = Suite.open(tmp_path / "new"), Suite.open(suite)
    assert found.file.prompts == before.file.prompts
    assert {name: it.metadata.digest for name, it in found.artifacts.items()} == {
        name: it.metadata.digest for name, it in before.artifacts.items()
    }
    assert (tmp_path / "new/calibration/report.md").read_text() == "report.md\n"


def test_a_tampered_file_is_refused_and_nothing_is_kept(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    push(probe, "owner/tones", **at(hub))
    weights = bytearray(hub.files("owner/tones")["probe.safetensors"])
    weights[-1] ^= 1
    hub.commit("owner/tones", {"probe.safetensors": bytes(weights)})
    with pytest.raises(ProbeError, match=r"owner/tones at \w{12}: .*digest.*nothing was kept"):
        pull("owner/tones", tmp_path / "new", **at(hub))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tones"]


def test_a_tampered_artifact_of_a_suite_is_refused(hub: FakeHub, suite: Path, tmp_path: Path) -> None:
    push(suite, "owner/suite", **at(hub))
    metadata = json.loads(hub.files("owner/suite")["caa/probe.json"])
    hub.commit("owner/suite", {"caa/probe.json": json.dumps({**metadata, "layer": 2}).encode()})
    with pytest.raises(ProbeError, match="caa: the digest"):
        pull("owner/suite", tmp_path / "new", **at(hub))
    assert not (tmp_path / "new").exists()


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


def test_a_pickle_beside_it_is_not_even_downloaded(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    push(probe, "owner/tones", **at(hub))
    extra = {
        "classifier.pkl": pickle.dumps(Bomb()),
        "pytorch_model.bin": b"x",
        "steering.py": b"import os",
        "deep/er/probe.json": b"{}",
        "..hidden/probe.json": b"{}",
    }
    hub.commit("owner/tones", extra)
    pull("owner/tones", tmp_path / "new", **at(hub))
    assert hub.downloaded() <= {"README.md", "probe.json", "probe.safetensors", "deep/er/probe.json",
                                "..hidden/probe.json"}  # fmt: skip
    assert not {path.name for path in (tmp_path / "new").iterdir()} & {"deep", "..hidden", *extra}


def test_branches_and_commits(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    first = push(probe, "owner/tones", **at(hub)).rpartition("/")[2]
    other = random_artifact("mlp", seed=9).save(tmp_path / "other")
    push(other, "owner/tones", revision="second", **at(hub))
    push(other, "owner/tones", **at(hub))
    digests = {
        revision: pull("owner/tones", tmp_path / str(revision), revision=revision, **at(hub)).digests[""]
        for revision in (first, "second", None)
    }
    one, two = (Artifact.load(folder).metadata.digest for folder in (probe, other))
    assert digests == {first: one, "second": two, None: two}
    pull("owner/tones", tmp_path / "asked", digest=two, **at(hub))
    with pytest.raises(ProbeError, match=f"expected the digest {one}, found {two}"):
        pull("owner/tones", tmp_path / "refused", digest=one, **at(hub))
    assert not (tmp_path / "refused").exists()


def test_what_the_hub_refuses_is_explained(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    push(probe, "owner/tones", **at(hub))
    hub.commit("owner/else", {"config.json": b"{}"})
    new = tmp_path / "new"
    for arguments, message in (
        (("owner/nothing", new), "owner/nothing on http.*: not found, or private.*hf auth login"),
        (("owner/else", new), "holds neither probe.json nor suite.json"),
        (("owner//tones", new), "repository name 'owner//tones'"),
        (("owner/tones", probe), "already there and not empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            pull(*arguments, **at(hub))
    with pytest.raises(ConfigError, match=r"owner/tones at v9 on .*: no such branch, tag or commit"):
        pull("owner/tones", new, revision="v9", **at(hub))
    with pytest.raises(ConfigError, match=r"owner/tones on http://127.0.0.1:9: "):
        pull("owner/tones", new, endpoint="http://127.0.0.1:9", token=TOKEN)
    assert not new.exists()


def test_a_damaged_folder_is_not_pushed(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    with (probe / "probe.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ProbeError, match="digest"):
        push(probe, "owner/tones", **at(hub))
    with pytest.raises(ConfigError, match="neither"):
        push(tmp_path, "owner/tones", **at(hub))
    assert not hub.requests


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
    assert Artifact.load(tmp_path / "new").metadata.digest in pulled[1]
    assert refused[0] == 2
    assert refused[2].splitlines()[-1].startswith("ksteer: owner/nothing on http")
