"""Exact readers as a judge: rules on the text alone, which give the same answer every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.bench.judges import Verdict
from ksteer_vllm.data.behaviours import read_behaviours
from ksteer_vllm.data.readers import NAMED, Reader, broken, reader_of
from ksteer_vllm.errors import DataError, UsageError

__all__ = ["TextReaders"]


class TextReaders:
    """A label is shown where its reader says so; a broken reply (`readers.broken`) is not coherent.

    Args:
        labels: The labels to find.
        behaviours: A file of behaviours, whose checks read the labels they are named after; None: every label
            is the name of a reader.
        readers: Label -> reader, before either.

    Raises:
        UsageError: For a label without a reader.
        DataError: For a file that cannot be read.
    """

    name = "readers"

    def __init__(
        self,
        labels: Sequence[str],
        *,
        behaviours: str | Path | None = None,
        readers: Mapping[str, Reader] | None = None,
    ) -> None:
        known: dict[str, Reader] = dict(readers or {})
        if behaviours is not None:
            described = read_behaviours(behaviours).behaviours
            found = {name: behaviour.reader for name, behaviour in described.items()}
            known = {name: reader for name, reader in found.items() if reader is not None} | known
        self._readers = {label: known[label] if label in known else _named(label) for label in labels}

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        return [self._verdict(reply.text) for reply in replies]

    def _verdict(self, text: str) -> Verdict:
        shown = frozenset(label for label, reader in self._readers.items() if reader.shows(text))
        return Verdict(shown, coherent=not broken(text))


def _named(label: str) -> Reader:
    try:
        return reader_of(label)
    except DataError:
        raise UsageError(
            f"judge: 'readers' has no reader for {label[:80]!r}; give it a check in a file of behaviours "
            f"(--judge-behaviours), or name it after a reader: {', '.join(NAMED)}"
        ) from None
