"""CONTRIBUTING's map: every path it names is there, and every room of the package is named."""

from __future__ import annotations

import re

from tests.support.programs import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
TOP = {path.name for path in ROOT.iterdir()} | {path.name for path in (ROOT / "ksteer_vllm").iterdir()}


def named() -> set[str]:
    """The paths in backquotes; of one with a placeholder in capitals, its folder."""
    found = set()
    for quoted in re.findall(r"`([\w./-]+)`", TEXT):
        if "/" in quoted and quoted.split("/")[0] in TOP:
            found.add(re.sub(r"[^/]*\b[A-Z]{3,}\b[^/]*$|[^/]*NAME[^/]*$", "", quoted))
    return found


def test_every_path_that_is_named_exists() -> None:
    homes = (ROOT, ROOT / "ksteer_vllm", ROOT / "kernels" / "ksteer_kernels")
    absent = [name for name in sorted(named()) if not any((home / name).exists() for home in homes)]
    assert not absent
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_room_is_named() -> None:
    rooms = [path for path in (ROOT / "ksteer_vllm").iterdir() if (path / "__init__.py").exists()]
    missing = [room.name for room in rooms if f"`ksteer_vllm/{room.name}/`" not in TEXT]
    assert len(rooms) > 10
    assert not missing


def test_every_file_beside_them_is_named() -> None:
    files = {path.name for path in (ROOT / "ksteer_vllm").glob("*.py")} - {"__init__.py"}
    assert not [name for name in sorted(files) if f"`ksteer_vllm/{name}`" not in TEXT]
