"""The disk is full, read-only or gone while a probe is written: the one that was there stays whole."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ksteer_vllm import ProbeError
from ksteer_vllm.probes.metadata import METADATA_FILE, WEIGHTS_FILE
from ksteer_vllm.probes.probe import Probe
from testbed.families import random_family_probe

OLD = random_family_probe("vectors", seed=1)
NEW = random_family_probe("vectors", seed=2)
ONLY = {METADATA_FILE, WEIGHTS_FILE}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return OLD.save(tmp_path / "tones")


def fails(function: Callable[..., Any], nth: int, number: int) -> Callable[..., Any]:
    """The function, but its nth call (from 0) raises OSError `number`."""
    calls = iter(range(1_000_000))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    return failing


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_holds(folder: Path, probe: Probe) -> None:
    found = Probe.load(folder)
    assert torch.equal(found.tensors["vectors"], probe.tensors["vectors"])
    assert names(folder) == ONLY  # and nothing half written


FAULTS = [
    *(("fsync", nth, errno.ENOSPC) for nth in (0, 1)),
    *(("replace", nth, errno.EROFS) for nth in (0, 1)),
    ("fsync", 1, errno.EIO),
    ("replace", 1, errno.ENOSPC),
]


@pytest.mark.parametrize(("function", "nth", "number"), FAULTS)
def test_a_failed_save_leaves_the_old_probe(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, nth: int, number: int
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, function, fails(getattr(os, function), nth, number))
        with pytest.raises(OSError, match=os.strerror(number)):
            NEW.save(folder)
    assert_holds(folder, OLD)
    NEW.save(folder)
    assert_holds(folder, NEW)


def test_an_old_file_that_cannot_be_put_back_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file is replaced, then the folder turns read-only."""
    old = {name: (folder / name).read_bytes() for name in ONLY}
    replace, calls = os.replace, iter(range(9))

    def only_the_first(*args: Any, **kwargs: Any) -> None:
        if next(calls) > 0:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        replace(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", only_the_first)
        with pytest.raises(OSError, match="Read-only"):
            NEW.save(folder)
    (former,) = (path for path in folder.iterdir() if path.name.endswith(".former"))
    name = former.name.removeprefix(".").removesuffix(".former")
    assert former.read_bytes() == old[name] != (folder / name).read_bytes()
    former.replace(folder / name)
    assert_holds(folder, OLD)


@pytest.mark.parametrize(("function", "nth", "number"), FAULTS)
def test_a_failed_first_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, nth: int, number: int
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, function, fails(getattr(os, function), nth, number))
        with pytest.raises(OSError, match=os.strerror(number)):
            NEW.save(tmp_path / "tones")
    assert not names(tmp_path / "tones")
    with pytest.raises(ProbeError):
        Probe.load(tmp_path / "tones")


def test_a_file_system_without_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fails(os.replace, 1, errno.ENOSPC))
        with pytest.raises(OSError, match="No space"):
            NEW.save(folder)
    assert_holds(folder, OLD)
    NEW.save(folder)
    assert_holds(folder, NEW)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel itself cuts files off at `size` bytes (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1, 500, 800])
def test_a_disk_that_takes_only_so_many_bytes(folder: Path, size: int) -> None:
    assert (folder / WEIGHTS_FILE).stat().st_size > size
    with largest_file(size), pytest.raises(OSError, match="too large"):
        NEW.save(folder)
    assert_holds(folder, OLD)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device(folder: Path) -> None:
    (folder / f".{WEIGHTS_FILE}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        NEW.save(folder)
    assert_holds(folder, OLD)


def test_leftovers_of_a_crash_do_not_stand_in_the_way(folder: Path) -> None:
    for name in ONLY:
        (folder / f".{name}.partial").write_bytes(b"half")
        (folder / f".{name}.former").write_bytes(b"old")
    NEW.save(folder)
    assert_holds(folder, NEW)


CRASH = """
import os, sys
from ksteer_vllm.probes.probe import Probe
from tests.claims.robust.test_failed_saves import NEW
replace, calls = os.replace, iter(range(9))
def crashing(*args, **kwargs):
    if next(calls) == int(sys.argv[2]):
        os._exit(9)
    return replace(*args, **kwargs)
os.replace = crashing
NEW.save(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("nth", [0, 1])
def test_a_crash_leaves_the_old_probe_or_one_that_is_refused(folder: Path, nth: int) -> None:
    """Between the two replacements the weights are new and the digest is old."""
    done = subprocess.run([sys.executable, "-c", CRASH, str(folder), str(nth)], check=False, timeout=120)
    assert done.returncode == 9
    if nth == 0:
        assert torch.equal(Probe.load(folder).tensors["vectors"], OLD.tensors["vectors"])
    else:
        with pytest.raises(ProbeError, match="digest"):
            Probe.load(folder)
    NEW.save(folder)
    assert_holds(folder, NEW)
