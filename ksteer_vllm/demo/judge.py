"""The demo language's exact reader as a judge: nothing is learned and nothing is guessed."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.bench.judges import Verdict
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.reader import read
from ksteer_vllm.errors import UsageError, listing

__all__ = ["ExactReader"]


class ExactReader:
    """Coherent: the whole reply is a well-formed answer to the question. Raises UsageError for other labels
    than the demo's tones."""

    name = "reader"

    def __init__(self, labels: Sequence[str]) -> None:
        unknown = [label for label in labels if label not in TONES]
        if unknown:
            raise UsageError(
                f"judge: 'reader' reads the demo's tones only ({listing(TONES)}), not {listing(unknown)}; "
                "take 'probe' or 'openai'"
            )
        self._labels = frozenset(labels)

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        readings = [read(reply.job.question, reply.text, finished=reply.finished) for reply in replies]
        return [Verdict(found.tones & self._labels, found.well_formed) for found in readings]
