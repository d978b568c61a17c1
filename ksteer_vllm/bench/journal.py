"""An experiment's results so far, on disk, so that it resumes after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from ksteer_vllm.errors import UsageError

__all__ = ["Journal"]


class Journal:
    """Values by key, one JSON line each, appended and flushed as they come; a cut-off last line is dropped.

    Use as a context manager.

    Args:
        path: The file; what it already holds can be read at once.
        identity: What the values depend on besides their keys (model, probe digests, sampling).

    Raises:
        UsageError: If the file was written under another identity, naming the field that differs.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._values: dict[str, Any] = {}
        identity = json.loads(json.dumps(identity))
        lines = _whole_lines(self.path)
        if lines:
            self._check(lines[0].get("identity"), identity)
        for line in lines[1:]:
            self._values[line["key"]] = line["value"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        if not lines:
            self._write({"identity": identity})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def add(self, key: str, value: Any) -> None:
        """Keep a JSON value. Adding a key again replaces its value."""
        self._values[key] = value
        self._write({"key": key, "value": value})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def _check(self, found: Any, wanted: Mapping[str, Any]) -> None:
        if found == wanted:
            return
        names = {*wanted, *(found if isinstance(found, dict) else {})}
        differing = sorted(n for n in names if not isinstance(found, dict) or found.get(n) != wanted.get(n))
        raise UsageError(
            f"{self.path}: of another run ({', '.join(differing)} differ); take another folder, or delete it"
        )


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The file's lines up to the first that is not whole, from which the file is cut off."""
    if not path.exists():
        return []
    lines, good = [], 0
    data = path.read_bytes()
    for line in data.splitlines(keepends=True):
        try:
            found = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(found, dict):
            break
        lines.append(found)
        good += len(line)
    if good < len(data):
        with path.open("r+b") as file:
            file.truncate(good)
    return lines
