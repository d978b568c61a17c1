"""Which part of the work a process does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

__all__ = ["WHOLE", "Share"]

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Every `count`-th entry of a mapping, from `number` on."""

    number: int
    count: int
    files: ClassVar[str] = "steered-*-of-*.jsonl"
    """Of all shares."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read NUMBER/COUNT."""
        number, _, count = text.partition("/")
        return cls(int(number), int(count))

    @property
    def file(self) -> str:
        """Where the process keeps what it does."""
        return f"steered-{self.number}-of-{self.count}.jsonl"

    def of(self, whole: Mapping[str, T]) -> dict[str, T]:
        """This share of a mapping, in its order."""
        return dict(list(whole.items())[self.number :: self.count])


WHOLE = Share(0, 1)
