"""Reading and replacing files that may be damaged, behind links, or something else than files."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

__all__ = ["read_regular", "replace_files"]


def read_regular(path: Path, limit: int) -> bytes:
    """The contents of a regular file of at most `limit` bytes.

    Never waits, as a FIFO would have it, and never reads more than `limit`, whatever the file claims to be.
    Raises OSError with a reason in `strerror`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a zero byte in the path
        raise OSError(0, str(error)) from None
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file")
        if status.st_size > limit:
            raise OSError(0, f"{status.st_size} bytes, at most {limit} are read")
        content = file.read(status.st_size)
        while len(content) < status.st_size and (more := file.read(status.st_size - len(content))):
            content += more
    return content


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the named files of a folder, replacing those that are there: all of them, or, if writing fails,
    none. Raises OSError.

    Everything is on the disk before the first file is replaced. Only a crash between two replacements, or a
    folder that lets the old files not be put back, can leave old and new side by side; the old one is
    `.NAME.former` then.
    """
    partial = {name: folder / f".{name}.partial" for name in contents}
    former = {name: folder / f".{name}.former" for name in contents}
    replaced: list[str] = []
    try:
        for name, content in contents.items():
            _write(partial[name], content)
        for name in contents:
            _keep(folder / name, former[name])
        for name in contents:
            partial[name].replace(folder / name)
            replaced.append(name)
    except BaseException:
        for name in replaced:
            try:
                if former[name].exists():
                    former[name].replace(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
            except OSError:
                del former[name]  # the only old copy: it stays
        raise
    finally:
        for leftover in (*partial.values(), *former.values()):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def _keep(path: Path, copy: Path) -> None:
    """A second name for the file, or a copy where the file system has no links; nothing if it is absent."""
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except FileNotFoundError:
        return
    except OSError:
        shutil.copyfile(path, copy)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
