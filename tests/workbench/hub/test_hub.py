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

from ksteer_vllm import ProbeError, UsageError
from ksteer_vllm.bench.suite import Suite, SuiteFile
from ksteer_vllm.data.rows import Message
from ksteer_vllm.hub.transfer import pull, push
from ksteer_vllm.probes.probe import Probe
from testbed.families import random_family_probe
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
    return random_family_probe("mlp").save(tmp_path / "tones")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two probes, the evaluation probe, a report, and files of other kinds that stay where they are."""
    folder = tmp_path / "suite"
    for index, (name, family) in enumerate((("mlp", "mlp"), ("caa", "vectors"), ("evaluation", "mlp"))):
        random_family_probe(family, seed=index).save(folder / name)
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
    for name in ("results.md", "strengths.png", "journal.jsonl"):
        (folder / "calibration" / name).write_text(f"{name}\n")
    (folder / "calibration" / "results.json").write_text('{"judge": "probe"}\n')
    (folder / "activations").mkdir()
    (folder / "activations" / "part-0.safetensors").write_bytes(b"large")
    (folder / "mlp" / ".secret").write_text("no")
    return folder


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


def test_a_tampered_file_is_refused_and_nothing_is_kept(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    push(probe, "owner/tones", **at(hub))
    weights = bytearray(hub.files("owner/tones")["probe.safetensors"])
    weights[-1] ^= 1
    hub.commit("owner/tones", {"probe.safetensors": bytes(weights)})
    with pytest.raises(ProbeError, match=r"owner/tones at \w{12}: .*digest.*nothing was kept"):
        pull("owner/tones", tmp_path / "new", **at(hub))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tones"]


def test_a_tampered_probe_of_a_suite_is_refused(hub: FakeHub, suite: Path, tmp_path: Path) -> None:
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
    assert hub.downloaded() == {"README.md", "probe.json", "probe.safetensors"}
    assert not {path.name for path in (tmp_path / "new").iterdir()} & {"deep", "..hidden", *extra}


ELSEWHERE = (
    "../probe.json", "../../results.json", "mlp/../../results.md", "/etc/results.md", "//mlp/results.md",
    "mlp\\probe.json", "..\\..\\results.md", "C:/results.md", "./results.json", ".git/results.md",
    "mlp/.png", "mlp/deep/results.md", "mlp/steering.py", "mlp/results.md\n", "results.md",
    "[m]lp/probe.json",
)  # fmt: skip


def test_a_path_of_another_form_is_never_asked_for(hub: FakeHub, suite: Path, tmp_path: Path) -> None:
    """Whatever the client would do with it."""
    push(suite, "owner/suite", **at(hub))
    plain = set(hub.files("owner/suite")) - {".gitattributes"}
    hub.commit("owner/suite", dict.fromkeys(ELSEWHERE, b"{}"))
    pull("owner/suite", tmp_path / "new", **at(hub))
    asked = {line.partition("/resolve/")[2].partition("/")[2] for line in hub.requests if "/resolve/" in line}
    assert asked == plain
    new = tmp_path / "new"
    assert {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()} == plain


def test_a_refusal_of_the_client_is_explained(
    hub: FakeHub, probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such path\nand more")

    push(probe, "owner/tones", **at(hub))
    monkeypatch.setattr(HfApi, "hf_hub_download", refuse)
    with pytest.raises(UsageError, match=r"^owner/tones on http://[\d.:]+: no such path$"):
        pull("owner/tones", tmp_path / "new", **at(hub))
    assert not (tmp_path / "new").exists()


MODEL = "/data/private/tiny-llama"


@pytest.mark.parametrize("base_model", [None, "someone/tiny-llama"])
def test_no_path_of_the_machine_is_published(
    hub: FakeHub, suite: Path, tmp_path: Path, base_model: str | None
) -> None:
    public = base_model or "tiny-llama"
    for path in Suite.open(suite).paths.values():
        probe = Probe.load(path)
        training = {"model": MODEL, "rows": 3, "layers": {"1": {"model": MODEL, "rows": 3}}}
        model = probe.metadata.model.model_copy(update={"name": MODEL})
        probe.with_metadata(model=model, training=training).save(path)
    options = {"tokenizer": "/data/private/tokenizer", "dtype": "float32", "max_model_len": 64}
    Suite(suite, Suite.open(suite).file.model_copy(update={"engine_options": options})).write()
    source = {"command": f"ksteer eval {suite}", "date": "today", "model": MODEL, "suite": "/data/private/s"}
    results = {"provenance": source, "cells": [1, 0.1], "command": "kept"}
    (suite / "calibration/results.json").write_text(json.dumps(results))
    lines = "\n".join(f"- {name}: {value}" for name, value in source.items())
    sample = "# Report\n\n- command: of a sample\n- model: of a sample\n"
    (suite / "calibration/results.md").write_text(f"{sample}\n## Provenance\n\n{lines}\n")
    before = {path: path.read_bytes() for path in suite.rglob("*") if path.is_file()}

    push(suite, "owner/suite", base_model=base_model, **at(hub))
    files = hub.files("owner/suite")
    assert [name for name, data in files.items() if b"/data/" in data or bytes(suite) in data] == []
    pull("owner/suite", tmp_path / "new", **at(hub))
    new, old = Suite.open(tmp_path / "new"), Suite.open(suite)
    for name, probe in new.probes.items():
        assert probe.metadata.model.name == public
        assert probe.metadata.training == {
            "model": public, "rows": 3, "layers": {"1": {"model": public, "rows": 3}},
        }  # fmt: skip
        assert probe.metadata.digest == old.probes[name].metadata.digest
    assert new.file.engine_options == {"dtype": "float32", "max_model_len": 64}
    assert json.loads(files["calibration/results.json"]) == {
        **results, "provenance": {"date": "today", "model": public},
    }  # fmt: skip
    assert files["calibration/results.md"].decode() == (
        f"{sample}\n## Provenance\n\n- date: today\n- model: {public}\n"
    )
    assert before == {path: path.read_bytes() for path in suite.rglob("*") if path.is_file()}


def test_results_that_cannot_be_read_are_not_published(hub: FakeHub, suite: Path) -> None:
    (suite / "calibration/results.json").write_text("command: /data/private")
    with pytest.raises(UsageError, match=r"calibration/results.json: Expecting value.*write the results"):
        push(suite, "owner/suite", **at(hub))
    assert not hub.requests


def test_pulled_into_a_folder_that_is_there(
    hub: FakeHub, probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(probe, "owner/tones", **at(hub))
    for name in ("here", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", tmp_path / "link"):
        pull("owner/tones", out, **at(hub))
        assert sorted(path.name for path in Path(out).iterdir()) == [
            "README.md", "probe.json", "probe.safetensors",
        ]  # fmt: skip
    assert Path.cwd() == tmp_path / "here"
    assert (tmp_path / "link").is_symlink()


def test_a_target_that_cannot_be_written_is_refused_before_anything_is_asked(
    hub: FakeHub, probe: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in ("file", "file/new", "loop/new", "tones"):
        with pytest.raises(UsageError, match="give another folder"):
            pull("owner/tones", tmp_path / out, **at(hub))
    assert not hub.requests


def test_what_fails_at_the_end_is_explained_and_leaves_nothing(
    hub: FakeHub, probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(probe, "owner/tones", **at(hub))
    (tmp_path / "there").mkdir()
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if "checked" in str(self) and self.name in ("checked", "probe.safetensors"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    for out in ("there", "new"):
        with pytest.raises(UsageError, match=f"{out}: cannot be written: No space left"):
            pull("owner/tones", tmp_path / out, **at(hub))
    assert list((tmp_path / "there").iterdir()) == []
    assert not (tmp_path / "new").exists()


def test_branches_and_commits(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    first = push(probe, "owner/tones", **at(hub)).rpartition("/")[2]
    other = random_family_probe("mlp", seed=9).save(tmp_path / "other")
    push(other, "owner/tones", revision="second", **at(hub))
    push(other, "owner/tones", **at(hub))
    digests = {
        revision: pull("owner/tones", tmp_path / str(revision), revision=revision, **at(hub)).digests[""]
        for revision in (first, "second", None)
    }
    one, two = (Probe.load(folder).metadata.digest for folder in (probe, other))
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
        with pytest.raises(UsageError, match=message):
            pull(*arguments, **at(hub))
    with pytest.raises(UsageError, match=r"owner/tones at v9 on .*: no such branch, tag or commit"):
        pull("owner/tones", new, revision="v9", **at(hub))
    with pytest.raises(UsageError, match=r"owner/tones on http://127.0.0.1:9: "):
        pull("owner/tones", new, endpoint="http://127.0.0.1:9", token=TOKEN)
    assert not new.exists()


def test_a_damaged_folder_is_not_pushed(hub: FakeHub, probe: Path, tmp_path: Path) -> None:
    with (probe / "probe.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ProbeError, match="digest"):
        push(probe, "owner/tones", **at(hub))
    with pytest.raises(UsageError, match="neither"):
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
    assert Probe.load(tmp_path / "new").metadata.digest in pulled[1]
    assert refused[0] == 2
    assert refused[2].splitlines()[-1].startswith("ksteer: owner/nothing on http")
