"""The evaluation probe as a judge: what an MLP fitted to other conversations reads in the reply."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.bench.chance import at_chance
from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.bench.judges import Verdict
from ksteer_vllm.errors import UsageError, listing
from ksteer_vllm.probes.probe import Probe

__all__ = ["EvaluationProbe", "check_reader"]


def check_reader(reader: Probe | None, labels: Sequence[str]) -> None:
    """Refuse an evaluation probe that cannot tell whether a reply shows a label.

    Args:
        reader: The evaluation probe; None is for others to refuse.
        labels: The labels it is to find.

    Raises:
        UsageError: If the balanced accuracy of a label on held-out replies is not above chance for certain.
    """
    poor = at_chance(reader.metadata.metrics, labels) if reader is not None else {}
    if poor:
        figures = listing((f"{label} {accuracy}" for label, accuracy in poor.items()), 12)
        raise UsageError(
            f"judge: the evaluation probe does not tell {figures} from other replies (balanced accuracy on "
            "held-out replies, chance is 0.50); fit it to more replies, or to such that show their labels, "
            "take another judge (--judge), or go on all the same (--allow-chance-judge)"
        )


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
