"""The unsteered, prompted and steered model on questions the probe was not fitted to, read by the checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rich.progress import Progress

from ksteer_vllm.bench.coherence import perplexity_limit
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.runner import JobRunner
from ksteer_vllm.data.readers import broken
from ksteer_vllm.experiments.knob.checks import Check, readings
from ksteer_vllm.experiments.knob.plan import RECIPE, KnobPlan, step_alpha
from ksteer_vllm.experiments.knob.prompts import Form
from ksteer_vllm.experiments.knob.written import Asked, Written

__all__ = [
    "KNOB",
    "ROWS",
    "ReadReply",
    "ReadingLimit",
    "Row",
    "Tryout",
    "perplexity",
]

KNOB: Final = "knob"
"""The probe's name in specs."""

Row = Literal["unsteered", "prompted", "steered", "prompted and steered"]
ROWS: Final[tuple[Row, ...]] = ("unsteered", "prompted", "steered", "prompted and steered")


@dataclass(frozen=True)
class ReadingLimit:
    """Up to which perplexity, under the unsteered model, a reply counts as one that can be read."""

    perplexity: float

    @classmethod
    def of(cls, *kinds: Sequence[float]) -> ReadingLimit:
        """1.5 times the 95th percentile of the perplexities of ordinary replies, the kind with the largest.

        A limit from unsteered replies alone would forbid every other language.
        """
        return cls(perplexity_limit(kinds))

    def allows(self, reply: Reply) -> bool:
        """Whether the reply is text, and within the limit."""
        return not broken(reply.text) and perplexity(reply) <= self.perplexity


@dataclass(frozen=True)
class ReadReply:
    """One reply, and what is said of it.

    Attributes:
        asked: The question, and the behaviour that was steered towards or asked for.
        reply: The reply.
        shown: The behaviours it shows.
        readable: Whether it is within the reading limit; None before there is one.
    """

    asked: Asked
    reply: Reply
    shown: frozenset[str]
    readable: bool | None = None

    def success(self, behaviour: str) -> bool:
        """Whether it shows the behaviour and can be read."""
        return behaviour in self.shown and self.readable is not False


@dataclass
class Tryout:
    """Runs questions on one engine that steers, and reads the replies.

    Attributes:
        bench: The engine; it knows the probe as KNOB.
        form: The form of the prompts.
        instructions: Behaviour -> the phrasings that ask for it, for the rows that prompt; empty where nobody
            wrote any.
        checks: Of every behaviour the probe has a label for.
        plan: Sampling and seed.
        journal: Keeps the replies.
        progress: Where to show how many are done.
        limit: What counts as readable, once it is known.
        recipe: The fields of the edit beside probe, label and alpha.
    """

    bench: JobRunner
    form: Form
    instructions: Mapping[str, Sequence[str]]
    checks: Mapping[str, Check]
    plan: KnobPlan
    journal: Journal
    progress: Progress
    limit: ReadingLimit | None = None
    recipe: Mapping[str, Any] = field(default_factory=lambda: RECIPE)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the table."""
        return ROWS if self.instructions else ("unsteered", "steered")

    def spec(self, behaviour: str, strength: float) -> dict[str, Any]:
        """The steering spec towards one behaviour."""
        return {
            "probe": KNOB,
            "target": [behaviour],
            **self.recipe,
            "alpha": step_alpha(strength, self.recipe),
        }

    def run(
        self, row: Row, questions: Sequence[str], strengths: Mapping[str, float] | None = None
    ) -> list[ReadReply]:
        """The outcomes of one row of a table: every question once, for every behaviour where that matters.

        The same question has the same seed in every row, so rows can be compared question by question.

        Args:
            row: How the model is asked.
            questions: Plain questions.
            strengths: Behaviour -> strength of the rows that steer; the others are not asked for. None: the
                row does not steer.
        """
        wanted: list[tuple[Asked, Job]] = []
        steers = strengths is not None and row in ("steered", "prompted and steered")
        asked_for = list(self.checks if strengths is None else strengths)
        names: Sequence[str | None] = [None] if row == "unsteered" else list(asked_for)
        for name in names:
            for number, question in enumerate(questions):
                prompt = self._prompt(row, name, question, number)
                spec = self.spec(str(name), strengths[str(name)]) if steers and strengths else None
                job = Job(prompt, spec, self.plan.seed + number, {"part": row})
                wanted.append((Asked(question, name), job))
        description = f"{row}, {_told(strengths)}" if steers and strengths else row
        replies = self.bench.run(
            [job for _, job in wanted], journal=self.journal, progress=self.progress, description=description
        )
        written = [Written(asked, reply.text) for (asked, _), reply in zip(wanted, replies, strict=True)]
        return [
            ReadReply(one.asked, reply, shown, None if self.limit is None else self.limit.allows(reply))
            for one, reply, shown in zip(written, replies, readings(self.checks, written), strict=True)
        ]

    def _prompt(self, row: Row, name: str | None, question: str, number: int) -> str:
        if name is None or row not in ("prompted", "prompted and steered"):
            return self.form.plain(question)
        phrasings = self.instructions[name]
        return self.form.instructed(phrasings[number % len(phrasings)], question)


def _told(strengths: Mapping[str, float]) -> str:
    values = sorted(set(strengths.values()))
    return "strength " + " to ".join(f"{value:g}" for value in dict.fromkeys((values[0], values[-1])))


def perplexity(reply: Reply) -> float:
    """exp of the nll; infinite for an empty reply."""
    return math.inf if reply.nll is None else math.exp(min(reply.nll, 700.0))
