"""Who says whether a reply shows a behaviour: an exact reader, an endpoint, or the words of its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ksteer_vllm.bench.judges import ENDPOINT, Judge, judge_for
from ksteer_vllm.data.behaviours import Behaviour
from ksteer_vllm.data.readers import Reader, broken
from ksteer_vllm.experiments.knob.written import Written

__all__ = ["ByReader", "Check", "checks_of", "readings"]


class Check(Protocol):
    """Says of replies whether they show one behaviour.

    Attributes:
        by: What it reads with, for tables.
    """

    by: str

    def shown(self, replies: Sequence[Written]) -> list[bool]: ...


class ByReader:
    """A reader of the text decides; by: what tables call it."""

    def __init__(self, reader: Reader, by: str = "reader") -> None:
        self.by, self._reader = by, reader

    def shown(self, replies: Sequence[Written]) -> list[bool]:
        return [self._reader.shows(reply.text) for reply in replies]


class ByEndpoint:
    """A model behind an endpoint decides; a reply it gave no usable answer about shows nothing."""

    by = "endpoint"

    def __init__(self, judge: Judge, name: str) -> None:
        self._judge, self._name = judge, name

    def shown(self, replies: Sequence[Written]) -> list[bool]:
        verdicts = self._judge.judge([reply.as_reply for reply in replies])
        return [verdict.judged and verdict.shows([self._name]) for verdict in verdicts]


def checks_of(behaviours: Mapping[str, Behaviour], folder: Path) -> dict[str, Check]:
    """The checks of the behaviours that have one; folder: where endpoints' verdicts are kept.

    Raises:
        UsageError: For an endpoint that cannot be reached.
    """
    found: dict[str, Check] = {}
    for number, (name, behaviour) in enumerate(behaviours.items()):
        if behaviour.reader is not None:
            found[name] = ByReader(behaviour.reader)
        elif (endpoint := behaviour.endpoint) is not None:
            judge = judge_for(
                ENDPOINT,
                [name],
                url=endpoint.url,
                model=endpoint.model,
                descriptions={name: endpoint.description or behaviour.instruction[0]},
                journal=folder / f"verdicts-{number}.jsonl",
            )
            found[name] = ByEndpoint(judge, name)
    return found


def readings(checks: Mapping[str, Check], replies: Sequence[Written]) -> list[frozenset[str]]:
    """For every reply, the behaviours it shows; a broken one shows none, and no check is asked about it."""
    whole = [reply for reply in replies if not broken(reply.text)]
    shown: dict[Written, set[str]] = {reply: set() for reply in whole}
    for name, check in checks.items():
        for reply, shows in zip(whole, check.shown(whole), strict=True):
            if shows:
                shown[reply].add(name)
    return [frozenset(shown.get(reply, ())) for reply in replies]
