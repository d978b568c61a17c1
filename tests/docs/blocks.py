"""The fenced code blocks of every text a reader meets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TEXTS = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "THREAT_MODEL.md",
    "benchmarks/PEERS.md",
    "benchmarks/README.md",
    "examples/deployment/README.md",
    "kernels/README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
)

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """One block. name: where it is, FILE:LINE."""

    name: str
    language: str
    text: str

    def __str__(self) -> str:
        return self.name


def all_blocks() -> Iterator[Block]:
    for file in TEXTS:
        text = (ROOT / file).read_text(encoding="utf-8")
        for found in _FENCE.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield Block(f"{file}:{line}", found["language"], found["text"])


def blocks(language: str, containing: str = "") -> list[Block]:
    """The blocks of one language, in order; those with a certain text in them."""
    return [block for block in all_blocks() if block.language == language and containing in block.text]
