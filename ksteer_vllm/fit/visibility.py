"""Whether replies differ by label at all: what a bag of words finds in them, cross-fitted by question.

A model that was asked to be concise need not have been. Where not even a classifier of the words tells a
label's replies from the others, the label says what was asked for and not what the text shows, and a probe
fitted to it reads the request.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ksteer_vllm.bench.chance import BalancedAccuracy
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.data.split import prompt_key

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["LEAST", "Visibility", "invisible", "terms", "visibility"]

LEAST: Final = 0.6
"""Balanced accuracy from which a label counts as visible, if its interval is above chance as well: that of a
label which one in five of its replies shows."""

_FOLDS = 5
_MOST_ROWS = 3000
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters: scripts that put no space between words."""

_TERM = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|[^\W{_UNSPACED}]+|[^\w\s]")


@dataclass(frozen=True)
class Visibility:
    """How well a bag of words tells a label's replies from the others, on questions it was not fitted to."""

    label: str
    accuracy: BalancedAccuracy
    auroc: float

    @property
    def visible(self) -> bool:
        return self.accuracy.above_chance and self.accuracy.value >= LEAST

    def as_json(self) -> dict[str, Any]:
        return {
            "balanced_accuracy": self.accuracy.as_json(),
            "auroc": self.auroc,
            "visible": self.visible,
        }


def visibility(rows: Sequence[LabelledRow], labels: Sequence[str]) -> list[Visibility]:
    """What a bag of words finds in replies.

    Words, their case, punctuation and the length count; text without spaces is taken by characters and pairs
    of them. Of more than 3000 rows, so many are drawn.

    Args:
        rows: At least two with and two without each label; those without a reply are not looked at.
        labels: K names.

    Returns:
        K findings, in the labels' order.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    spoken = [row for row in rows if row.reply is not None]
    if len(spoken) > _MOST_ROWS:
        spoken = random.Random(0).sample(spoken, _MOST_ROWS)
    texts = [row.spoken for row in spoken]
    shown = np.array([[label in row.labels for label in labels] for row in spoken])
    scores = np.zeros(shown.shape)
    keys = [prompt_key(row.prompt) for row in spoken]
    groups = keys if len(set(keys)) >= _FOLDS else [str(index) for index in range(len(keys))]
    for train, test in GroupKFold(_FOLDS).split(texts, groups=groups):
        fitted, held_out = _features([texts[k] for k in train], [texts[k] for k in test])
        for index in range(len(labels)):
            scores[test, index] = _margins(fitted, shown[train, index], held_out)
    return [
        Visibility(
            label,
            BalancedAccuracy.of(shown[:, index], scores[:, index] > 0),
            float(roc_auc_score(shown[:, index], scores[:, index])),
        )
        for index, label in enumerate(labels)
    ]


def invisible(found: Sequence[Visibility]) -> list[Visibility]:
    """The labels that the replies do not show."""
    return [one for one in found if not one.visible]


def terms(text: str) -> Iterator[str]:
    """Words and punctuation marks; of a script without spaces, characters and pairs of them."""
    for match in _TERM.finditer(text):
        term = match.group()
        if match["unspaced"] is None:
            yield term
        else:
            yield from term
            yield from (term[k : k + 2] for k in range(len(term) - 1))


def _features(train: Sequence[str], test: Sequence[str]) -> tuple[csr_matrix, csr_matrix]:
    """tf-idf of the terms, and the length (log of 1 + terms, standardised): [n, V + 1] each."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=lambda text: list(terms(text)), sublinear_tf=True)
    words = vectorizer.fit_transform(train), vectorizer.transform(test)
    lengths = [np.log1p([[sum(1 for _ in terms(text))] for text in texts]) for texts in (train, test)]
    mean, deviation = lengths[0].mean(), lengths[0].std() or 1.0
    found = [
        hstack([bag, csr_matrix((length - mean) / deviation)]).tocsr()
        for bag, length in zip(words, lengths, strict=True)
    ]
    return found[0], found[1]


def _margins(train: csr_matrix, shown: np.ndarray, test: csr_matrix) -> np.ndarray:
    """[n] decision values of a logistic regression; where all of `shown` are alike, those of that answer."""
    from sklearn.linear_model import LogisticRegression

    if shown.all() or not shown.any():
        return np.full(test.shape[0], 1.0 if shown.all() else -1.0)
    model = LogisticRegression(C=3.0, class_weight="balanced", solver="liblinear")
    margins: np.ndarray = model.fit(train, shown).decision_function(test)
    return margins
