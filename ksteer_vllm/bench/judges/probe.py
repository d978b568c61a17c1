"""The evaluation probe as a judge: what an MLP fitted to other conversations reads in the reply."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.bench.judges import Verdict
from ksteer_vllm.errors import UsageError, listing

__all__ = ["EvaluationProbe"]


class EvaluationProbe:
    """A label is shown where the mean logit over the reply's positions is above 0 (probability 0.5).

    It says nothing about coherence. An empty reply shows nothing. Raises UsageError for a reply that was not
    read by an evaluation probe, or by one without one of the labels.
    """

    name = "probe"

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        return [self._verdict(reply) for reply in replies]

    def _verdict(self, reply: Reply) -> Verdict:
        if reply.propensity is None:
            if reply.tokens == 0:
                return Verdict(frozenset())
            raise UsageError(
                "judge: 'probe' needs an evaluation probe, which `ksteer fit --method all` writes into a "
                "suite; take another judge"
            )
        absent = [label for label in self._labels if label not in reply.propensity]
        if absent:
            raise UsageError(f"judge: the evaluation probe does not know {listing(absent)}")
        return Verdict(frozenset(label for label in self._labels if reply.propensity[label] > 0))
