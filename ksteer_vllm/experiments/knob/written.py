"""Replies of the unsteered model, plain and under instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.data.behaviours import Behaviour
from ksteer_vllm.experiments.knob.prompts import PromptForm

__all__ = ["Asked", "Written", "fitting_jobs"]


@dataclass(frozen=True)
class Asked:
    """A question, and what was asked for with it.

    Attributes:
        question: The plain question.
        behaviour: The one whose instruction went with it; None: none did.
        sample: Which of several times it was asked.
    """

    question: str
    behaviour: str | None = None
    sample: int = 0


@dataclass(frozen=True)
class Written:
    """A reply's text, and what it answers."""

    asked: Asked
    text: str

    @property
    def as_reply(self) -> Reply:
        """The reply to the plain question, as judges read them."""
        return Reply(Job(self.asked.question), self.text, tokens=len(self.text.split()), finished=True)


def fitting_jobs(
    form: PromptForm,
    behaviours: Mapping[str, Behaviour],
    questions: Sequence[str],
    *,
    samples: int,
    seed: int,
) -> list[tuple[Asked, Job]]:
    """Every question plainly and under every behaviour's instruction, `samples` times each.

    The phrasings of an instruction take turns. Every request has a seed of its own. The requests of one
    question stand together, so that an interrupted run has whole questions.
    """
    found: list[tuple[Asked, Job]] = []
    for number, question in enumerate(questions):
        for sample in range(samples):
            turn = number * samples + sample
            asked = [(Asked(question, None, sample), form.plain(question))]
            for name, behaviour in behaviours.items():
                phrasing = behaviour.instruction[turn % len(behaviour.instruction)]
                asked.append((Asked(question, name, sample), form.instructed(phrasing, question)))
            for who, prompt in asked:
                found.append((who, Job(prompt, None, seed + len(found), {"part": "fit"})))
    return found
