"""One catalog for several front ends, in processes of their own."""

from __future__ import annotations

import errno
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ksteer_vllm.admission.catalog import Catalog
from ksteer_vllm.admission.store import CatalogStore

START = Catalog(presets={"start": {"probe": "a"}})


def front_end(folder: Path, index: int, pipe: Connection) -> None:
    """Another API server: does what it is told, and says what it sees."""
    store = CatalogStore(START, folder, index=index, count=2)
    pipe.send("ready")
    while (command := pipe.recv()) != "stop":
        if command == "read":
            pipe.send(store.read())
        elif command == "lock":
            pipe.send(store.try_lock())
        elif command == "unlock":
            store.unlock()
            pipe.send(None)
        elif isinstance(command, Catalog):
            store.publish(command)
            pipe.send(None)
        else:
            store.mark_seen(command)
            pipe.send(None)


class Other:
    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=front_end, args=(folder, 1, end), daemon=True)
        self._process.start()
        assert self._pipe.poll(60)
        assert self._pipe.recv() == "ready"

    def ask(self, command: object) -> object:
        self._pipe.send(command)
        assert self._pipe.poll(30)
        return self._pipe.recv()

    def stop(self) -> None:
        self._pipe.send("stop")
        self._process.join(30)


def test_what_one_publishes_the_other_reads_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    mine = CatalogStore(START, folder, index=0, count=2)
    other = Other(folder)
    assert other.ask("read") == START
    assert mine.try_lock()
    assert other.ask("lock") is False
    following = mine.read().with_presets({"warm": {"probe": "b"}})
    mine.publish(following)
    assert other.ask("read") == following
    mine.unlock()
    assert other.ask("lock") is True
    assert not mine.try_lock()
    theirs = following.with_presets({})
    other.ask(theirs)
    other.ask("unlock")
    assert mine.read() == theirs

    assert not mine.all_seen(2)
    mine.mark_seen(2)
    assert not mine.all_seen(2)
    other.ask(2)
    assert mine.all_seen(2)
    assert not mine.all_seen(3)
    other.stop()
    mine.close()


def test_alone_it_is_kept_in_memory() -> None:
    store = CatalogStore(START)
    assert store.try_lock()
    assert not store.try_lock()
    store.publish(START.with_presets({}))
    store.unlock()
    assert store.read().generation == 1
    assert not store.all_seen(1)
    store.mark_seen(1)
    assert store.all_seen(1)


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CatalogStore(START, tmp_path / "shared")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.publish(START.with_presets({"warm": {}}))
    assert store.read() == START
    again = CatalogStore(Catalog(), tmp_path / "shared")
    assert again.read() == START
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["catalog.json", "lock", "marks"]


def test_a_folder_others_can_enter_is_refused(tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o755)
    with pytest.raises(PermissionError, match="private"):
        CatalogStore(START, open_folder)
