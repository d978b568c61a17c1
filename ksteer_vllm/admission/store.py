"""Where the catalog is kept: in memory, or in a folder that all front-end processes of a server share."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from pathlib import Path

from ksteer_vllm.admission.catalog import Catalog

__all__ = ["CatalogStore"]

_WORD = 8


class CatalogStore:
    """One front end's view of the catalog.

    Reading costs one look at shared memory. It holds one word with the catalog's generation, then one word
    per front end with the generation it has marked (`mark_seen`).

    Args:
        initial: The catalog to begin with, unless the folder holds one already.
        folder: Shared by all front ends of the server; None if this is the only one.
        index: The number of this front end, from 0.
        count: How many front ends there are.

    Raises:
        OSError: If the folder cannot be used; PermissionError if other users can.
    """

    def __init__(
        self, initial: Catalog, folder: Path | None = None, *, index: int = 0, count: int = 1
    ) -> None:
        self._catalog = initial
        self._folder = folder
        self._index = index
        self._count = count
        self._guard = threading.Lock()
        self._marks: mmap.mmap | bytearray = bytearray(_WORD * (1 + count))
        self._lock_file = -1
        self._locked = False
        if folder is not None:
            folder.mkdir(mode=0o700, exist_ok=True)
            owner = folder.stat()
            if owner.st_uid != os.geteuid() or owner.st_mode & 0o077:
                raise PermissionError(f"{folder} is not a private folder of this user")
            self._lock_file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                self._marks = _shared_words(folder / "marks", 1 + count)
                if not (folder / "catalog.json").exists():
                    self._write(initial)
                self._catalog = self._load()
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    @property
    def folder(self) -> Path | None:
        """The shared folder, if there is one."""
        return self._folder

    def read(self) -> Catalog:
        """The catalog as it is now."""
        if self._word(0) != self._catalog.generation:
            with self._guard:
                if self._word(0) != self._catalog.generation:
                    self._catalog = self._load()
        return self._catalog

    def try_lock(self) -> bool:
        """Begin a change, unless another one is being made, here or by another front end."""
        if self._locked:
            return False
        if self._lock_file >= 0:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        self._locked = True
        return True

    def unlock(self) -> None:
        """End the change that `try_lock` began."""
        self._locked = False
        if self._lock_file >= 0:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def publish(self, catalog: Catalog) -> None:
        """Make this the catalog of every front end, at once. Call it between `try_lock` and `unlock`.

        Raises OSError, in which case nothing has changed.
        """
        self._write(catalog)
        with self._guard:
            self._catalog = catalog
            self._set_word(0, catalog.generation)

    def mark_seen(self, generation: int) -> None:
        """Record that whatever this front end admitted before `generation` has reached the engine."""
        self._set_word(1 + self._index, generation)

    def all_seen(self, generation: int) -> bool:
        """Whether every front end has marked `generation` or a later one."""
        return all(self._word(1 + index) >= generation for index in range(self._count))

    def close(self) -> None:
        """Release the shared memory and the lock file."""
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1
        if isinstance(self._marks, mmap.mmap):
            self._marks.close()

    def _word(self, place: int) -> int:
        return int.from_bytes(self._marks[place * _WORD : (place + 1) * _WORD], "little")

    def _set_word(self, place: int, value: int) -> None:
        self._marks[place * _WORD : (place + 1) * _WORD] = value.to_bytes(_WORD, "little")

    def _load(self) -> Catalog:
        if self._folder is None:
            return self._catalog
        return Catalog.model_validate_json((self._folder / "catalog.json").read_bytes())

    def _write(self, catalog: Catalog) -> None:
        if self._folder is None:
            return
        partial = self._folder / "catalog.json.partial"
        self._folder.mkdir(mode=0o700, exist_ok=True)  # a cleaner of temporary folders may have removed it
        try:
            with partial.open("wb") as file:
                file.write(catalog.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._folder / "catalog.json")
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def _shared_words(path: Path, count: int) -> mmap.mmap:
    """`count` zero words in a file that every front end maps."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < count * _WORD:
            os.ftruncate(descriptor, count * _WORD)
        return mmap.mmap(descriptor, count * _WORD)
    finally:
        os.close(descriptor)
