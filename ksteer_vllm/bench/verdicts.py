"""Which replies read well, by the coherence rule and by a judge, each text judged once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ksteer_vllm.bench.coherence import CoherenceRule
from ksteer_vllm.bench.jobs import Reply

if TYPE_CHECKING:
    from ksteer_vllm.bench.judges import Judge, Verdict

__all__ = ["Verdicts"]


@dataclass
class Verdicts:
    """The verdicts of a judge, if there is one.

    The same text for the same prompt is judged once, and a reply the rule finds incoherent not at all: it
    cannot be on target.
    """

    judge: Judge | None = None
    _known: dict[tuple[object, ...], Verdict] = field(default_factory=dict)

    def coherent(self, rule: CoherenceRule, replies: Sequence[Reply]) -> list[bool]:
        """Whether each is coherent by the rule and, if the judge says anything about it, by the judge."""
        by_rule = [rule.coherent(reply) for reply in replies]
        if self.judge is None:
            return by_rule
        new = {
            _text_of(reply): reply
            for reply, fine in zip(replies, by_rule, strict=True)
            if fine and _text_of(reply) not in self._known
        }
        self._known |= dict(zip(new, self.judge.judge(list(new.values())), strict=True))
        return [
            fine and self._known[_text_of(reply)].coherent is not False
            for reply, fine in zip(replies, by_rule, strict=True)
        ]

    def of(self, reply: Reply) -> Verdict | None:
        """The verdict on a reply that `coherent` has seen; None if it was not judged."""
        return self._known.get(_text_of(reply))


def _text_of(reply: Reply) -> tuple[object, ...]:
    return reply.job.prompt, reply.text, reply.finished
