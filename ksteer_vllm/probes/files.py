"""Reading and replacing files that may be damaged, behind links, or not regular files at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

__all__ = ["read_regular", "replace_files"]


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file.

    Never blocks, as opening a FIFO would, and never reads more than `limit` bytes, whatever the file claims.

    Args:
        path: The file.
        limit: The largest size that is read, in bytes.

    Returns:
        Its contents.

    Raises:
        OSError: If it is not a regular file, too large or unreadable; the reason is in `strerror`.
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
            raise OSError(0, f"the file has {status.st_size} bytes, at most {limit} are allowed")
        content = file.read(status.st_size)
        while len(content) < status.st_size and (more := file.read(status.st_size - len(content))):
            content += more
    return content


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder, replacing existing ones: all of them or, if writing fails, none.

    Everything is on the disk before the first file is replaced. Only a crash between two replacements, or a
    folder that does not let the old files be put back, can leave old and new side by side; the old one is
    then `.NAME.former`.

    Args:
        folder: An existing folder.
        contents: Name -> what the file holds afterwards.

    Raises:
        OSError: If a file cannot be written.
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
