"""The house is one a person can live in: few rooms, short files, one name for a thing."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 360
MOST_ENTRIES = 26


def tracked(*patterns: str) -> list[Path]:
    """Files git knows; in an unpacked archive, all there are."""
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]
    return [path for pattern in patterns for path in ROOT.rglob(pattern) if ".venv" not in path.parts]


def test_the_package_has_few_entries() -> None:
    entries = {path.relative_to(ROOT / "ksteer_vllm").parts[0] for path in tracked("ksteer_vllm/**")}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_no_file_is_longer_than_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in tracked("*.py")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_class_name_is_used_twice() -> None:
    homes = defaultdict(list)
    for path in tracked("ksteer_vllm/*.py", "kernels/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_a_probe_is_a_probe() -> None:
    """What a fit leaves has one word; the other is found nowhere in the package."""
    found = [path for path in tracked("ksteer_vllm/*.py") if re.search("artifact", path.read_text(), re.I)]
    assert found == []
