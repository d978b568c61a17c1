"""Which folder a client's name may lead to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ksteer_vllm.admission.catalog import Catalog
from ksteer_vllm.admission.folders import find_folder
from ksteer_vllm.errors import LifecycleError
from ksteer_vllm.host.lifecycle import _refusal
from testbed.probes import random_probe


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    inside = tmp_path / "probes"
    random_probe().save(inside / "tones")
    random_probe().save(tmp_path / "outside")
    (inside / "link").symlink_to("tones")
    (inside / "escape").symlink_to(tmp_path / "outside")
    (inside / "loop").symlink_to("loop")
    (inside / "file").write_text("no folder")
    (inside / "empty").mkdir()
    partly = inside / "partly"
    partly.mkdir()
    (partly / "probe.json").symlink_to(tmp_path / "outside" / "probe.json")
    (partly / "probe.safetensors").symlink_to(inside / "tones" / "probe.safetensors")
    return inside


def test_a_folder_and_a_link_to_it_are_found(directory: Path, tmp_path: Path) -> None:
    assert find_folder("tones", [str(directory)]) == directory / "tones"
    assert find_folder("link", [str(tmp_path / "absent"), str(directory)]) == directory / "tones"


def test_a_directory_that_is_a_link_itself_is_fine(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(directory)
    assert find_folder("tones", [str(tmp_path / "alias")]) == directory / "tones"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("", 400), (".", 400), ("..", 400), ("../outside", 400), ("tones/../../outside", 400),
        ("/etc", 400), ("a\\b", 400), ("a\0b", 400), ("x" * 256, 400), ("escape", 400), ("partly", 400),
        ("file", 400), ("empty", 400), ("loop", 404), ("absent", 404), ("\ud800", 404), ("%2e%2e", 404),
    ],
)  # fmt: skip
def test_everything_else_is_refused(directory: Path, name: str, status: int) -> None:
    with pytest.raises(LifecycleError) as refusal:
        find_folder(name, [str(directory)])
    assert refusal.value.status == status
    assert refusal.value.field == "folder"
    assert str(directory) not in str(refusal.value)


def test_what_a_worker_says_names_no_path(directory: Path) -> None:
    path = directory / "tones"
    for why in ("probe", "full"):
        answer = {"ok": False, "why": why, "message": f"{path}/probe.safetensors: not a regular file"}
        refusal = _refusal(Catalog(), answer, path, "tones")
        assert "'tones'/probe.safetensors: not a regular file" in str(refusal)
        assert str(directory) not in str(refusal)


def test_without_directories_nothing_can_be_loaded() -> None:
    with pytest.raises(LifecycleError, match="--ksteer-probe-dir") as refusal:
        find_folder("tones", [])
    assert refusal.value.status == 403
