"""Finding a probe folder by name in the directories the operator named. Clients give no paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ksteer_vllm.errors import LifecycleError
from ksteer_vllm.probes.metadata import METADATA_FILE, WEIGHTS_FILE

__all__ = ["find_folder"]

MAX_NAME = 255


def find_folder(name: str, directories: Sequence[str]) -> Path:
    """Find a probe folder by its name.

    Wherever symbolic links lead, the folder and its two files must lie inside the directory.

    Args:
        name: The folder's name, a single path component.
        directories: Where to look, in order.

    Returns:
        The real path of the folder in the first directory that has one.

    Raises:
        LifecycleError: With status 400 (a bad name or folder), 403 (there are no directories) or 404.
    """
    if not directories:
        raise LifecycleError(
            403, "folder", "no probes can be loaded: this server was started without --ksteer-probe-dir"
        )
    if not name or name in (".", "..") or len(name) > MAX_NAME or not set(name).isdisjoint("/\\\0"):
        raise LifecycleError(
            400, "folder", f"folder: expected a folder's name, a single path component, got {name[:80]!r}"
        )
    for directory in directories:
        root = Path(directory).resolve()
        try:
            found = (root / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            continue
        files = (found / METADATA_FILE, found / WEIGHTS_FILE)
        if not all(_inside(path, root) for path in (found, *files)):
            raise LifecycleError(400, "folder", f"folder: {name[:80]!r} leads outside its directory")
        if not found.is_dir() or not all(path.is_file() for path in files):
            raise LifecycleError(
                400, "folder", f"folder: {name[:80]!r} does not hold {METADATA_FILE} and {WEIGHTS_FILE}"
            )
        return found
    raise LifecycleError(404, "folder", f"folder: no --ksteer-probe-dir directory has {name[:80]!r}")


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):
        return False
