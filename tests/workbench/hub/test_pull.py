"""What is pulled is checked, and put in place whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import ProbeError, UsageError
from ksteer_vllm.hub.transfer import pull, push
from ksteer_vllm.probes.probe import Probe
from testbed.families import random_family_probe
from tests.support.fake_hub import TOKEN, FakeHub, at


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
