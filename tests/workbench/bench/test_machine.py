"""Threads beside other work, and when compiling pays."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ksteer_vllm.bench import machine
from ksteer_vllm.cli import options
from ksteer_vllm.models import ModelIdentity


@pytest.mark.parametrize(
    ("cores", "visible", "free", "threads"),
    [
        (2, 2, 2.0, None),  # quiet: the default is faster
        (2, 2, 1.8, None),
        (2, 2, 1.4, 1),
        (8, 8, 6.5, 6),
        (8, 8, 0.4, 1),
        (2, 64, 2.0, 2),  # a quota that the default would not heed
        (1, 1, 1.0, None),
    ],
)
def test_threads_are_as_many_as_there_are_free_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, visible: int, free: float, threads: int | None
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "_visible_cores", lambda: visible)
    monkeypatch.setattr(machine, "free_cores", lambda *_: free)
    found = machine.threads_here()
    assert (None if found is None else found.number) == threads


def test_the_users_own_number_wins_and_another_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "threads_here", lambda: machine.Threads(1, "others are busy"))
    monkeypatch.delitem(options.sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    options.one_process()
    assert options.os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    options.one_process()
    assert options.os.environ["OMP_NUM_THREADS"] == "1"
    assert capsys.readouterr().err == "ksteer: OMP_NUM_THREADS=1, for others are busy\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # so that the test leaves what it found


def test_cores_heed_the_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_visible_cores", lambda: 8)
    assert machine.cores() == 8
    for quota, cores in (("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)):
        (tmp_path / "cpu.max").write_text(quota + "\n")
        assert machine.cores() == cores
    (tmp_path / "memory.max").write_text("4096\n")
    assert machine.free_memory() == 4096


def test_free_cores_are_measured() -> None:
    """One busy thread gets at most one core; how much of it says what else runs here."""
    began = time.perf_counter()
    assert 0.0 < machine.free_cores(1, 0.05) <= 1.1
    assert time.perf_counter() - began < 5


def test_compiling_pays_for_many_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    small = ModelIdentity(name="s", model_type="llama", hidden_size=576, num_layers=30)
    tiny = ModelIdentity(name="t", model_type="llama", hidden_size=64, num_layers=4)
    assert not machine.compilation_pays(small, 10_000)
    assert machine.compilation_pays(small, 200_000)
    assert not machine.compilation_pays(tiny, 200_000)
    assert not machine.compilation_pays(small, 70_000)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.compilation_pays(small, 70_000)
