"""Whether replies under an instruction differ from others at all, and which of them: by a bag of words.

For behaviours that nobody gave a check. Every reply is read by a classifier that saw no reply to the same
question, so what it finds is not the question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ksteer_vllm.bench.chance import BalancedAccuracy

__all__ = ["LEAST_ACCURACY", "Separation", "WordsReader", "separate"]

LEAST_ACCURACY: Final = 0.6
"""Balanced accuracy on questions that were held out, from which replies count as different."""

_FOLDS: Final = 5
_TERM = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]|\n")


class WordsReader:
    """Finds a text nearer to one set of texts than to another, by its words, marks and line breaks.

    Args:
        texts: At least one of either kind.
        shown: [n], which of them show what is to be found.
    """

    def __init__(self, texts: Sequence[str], shown: Sequence[bool]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        bag = TfidfVectorizer(analyzer=_terms, sublinear_tf=True)
        reads = LogisticRegression(C=10.0, class_weight="balanced", solver="liblinear")
        self._model: Any = make_pipeline(bag, reads).fit(list(texts), list(shown))

    def shows(self, text: str) -> bool:
        return self.margins([text])[0] > 0

    def margins(self, texts: Sequence[str]) -> list[float]:
        """[n] log odds; above 0: shown."""
        return [float(margin) for margin in self._model.decision_function(list(texts))]


@dataclass(frozen=True)
class Separation:
    """How well texts were told from others on held-out questions.

    Attributes:
        found: [n], which of all texts were said to show it.
        accuracy: Balanced accuracy, with its interval.
        reader: Fitted to all of them, for new texts.
    """

    found: tuple[bool, ...]
    accuracy: BalancedAccuracy
    reader: WordsReader

    @property
    def separable(self) -> bool:
        return self.accuracy.above_chance and self.accuracy.value >= LEAST_ACCURACY


def separate(texts: Sequence[str], shown: Sequence[bool], questions: Sequence[str]) -> Separation | None:
    """Tell the texts that are meant to show something from the others, five-fold, by question.

    Args:
        texts: [n].
        shown: [n], which are meant to.
        questions: [n], what each answers.

    Returns:
        The separation; None if there are too few texts or questions to say.
    """
    from sklearn.model_selection import GroupKFold

    truth = np.array(shown, dtype=bool)
    if min(truth.sum(), (~truth).sum()) < _FOLDS or len(set(questions)) < _FOLDS:
        return None
    margins = np.zeros(len(texts))
    for train, test in GroupKFold(_FOLDS).split(texts, groups=questions):
        if len(set(truth[train])) < 2:
            return None
        reader = WordsReader([texts[k] for k in train], [bool(truth[k]) for k in train])
        margins[test] = reader.margins([texts[k] for k in test])
    found = margins > 0
    return Separation(
        tuple(map(bool, found)), BalancedAccuracy.of(truth, found), WordsReader(texts, [*map(bool, truth)])
    )


def _terms(text: str) -> list[str]:
    return _TERM.findall(text.lower())
