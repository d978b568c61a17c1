"""Who says which labels a reply shows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol

from pydantic import Field

from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.errors import UsageError, choices, listing
from ksteer_vllm.spec.families import load

__all__ = ["ENDPOINT", "JUDGES", "AllowChanceJudge", "Judge", "Verdict", "described", "judge_for"]

ENDPOINT: Final = "openai"
"""The name of the judge that is a model behind an endpoint of OpenAI's API."""

JUDGES = {
    "reader": "ksteer_vllm.demo.judge:ExactReader",
    "probe": "ksteer_vllm.bench.judges.probe:EvaluationProbe",
    ENDPOINT: "ksteer_vllm.bench.judges.endpoint:Endpoint",
    "readers": "ksteer_vllm.bench.judges.readers:TextReaders",
}

AllowChanceJudge = Annotated[
    bool,
    Field(
        description="Judge by the evaluation probe even if it is no better than chance on held-out replies."
    ),
]
"""Of plans and commands whose judge may be the evaluation probe."""

_OPTIONS = {
    "readers": ("behaviours", "readers"),
    ENDPOINT: ("url", "model", "key", "descriptions", "concurrency", "timeout", "attempts", "temperature",
               "journal", "progress"),
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one reply.

    Attributes:
        shown: The labels it shows.
        coherent: Whether it reads well; None if the judge cannot tell.
        judged: False if the judge gave no usable answer; such a reply counts neither way.
    """

    shown: frozenset[str]
    coherent: bool | None = None
    judged: bool = True

    def shows(self, target: Collection[str]) -> bool:
        """Whether the reply shows every label of the target."""
        return self.shown.issuperset(target)


class Judge(Protocol):
    """Reads finished replies, in their order."""

    name: str

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]: ...


def judge_for(name: str, labels: Sequence[str], **options: Any) -> Judge:
    """The judge of a name, for these labels.

    Args:
        name: `reader` (the demo's exact reader), `probe` (the evaluation probe's mean logit is
            above 0), `openai` (a chat endpoint) or `readers` (the exact readers of `data.readers`).
        labels: The labels it is to find.
        options: Of `readers` and `openai`: see `TextReaders` and `Endpoint`.

    Raises:
        UsageError: For an unknown name, labels the judge cannot read, options it does not take, or an
            endpoint without a url.
    """
    if name not in JUDGES:
        raise UsageError(f"judge: unknown {name[:80]!r}; known: {choices(name, JUDGES)}")
    if unknown := sorted(set(options) - set(_OPTIONS.get(name, ()))):
        takers = [repr(judge) for judge, taken in _OPTIONS.items() if set(unknown) <= set(taken)]
        raise UsageError(
            f"judge: {name!r} takes no {listing(unknown)}"
            + (f"; that is for {listing(takers)}" if takers else "")
        )
    if name == ENDPOINT and not options.get("url"):
        raise UsageError(
            f"judge: {ENDPOINT!r} needs the address of an endpoint, such as --judge-url http://localhost:8000/v1"
        )
    judge: Judge = load(JUDGES[name])(labels, **options)
    return judge


def described(task_name: str, labels: Collection[str]) -> dict[str, str]:
    """What labels mean, for a judge to be told: of those that a predefined task describes."""
    from ksteer_vllm.data.predefined import STYLED

    styles = STYLED[task_name].styles if task_name in STYLED else {}
    return {label: styles[label] for label in labels if label in styles}
