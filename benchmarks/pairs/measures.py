"""The measures: target features, off-target features, and how near the produced word is to a target word.

Features f [N, n] are those of one dictionary at one position per prompt, in one layer. A pair gives three of
them: neutral (no context, unsteered), context (asked for in words, unsteered) and steered (no context,
steered). All sums are over pairs.

    target      sum_T (steered - neutral) / sum_T (context - neutral)       T: the features of the behaviours
    off-target  sum_O |steered - neutral| / sum_O neutral                   O: all other features
    similarity  mean over behaviours asked for of the largest cosine between the produced word and one of the
                behaviour's words
    weakest     target, over the features of the one behaviour of a set for which it is smallest

0 is what no steering gives for the first two; 1 of the first is what asking in words does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.pairs.environment import Pair

__all__ = ["WordVectors", "behaviour_features", "off_target", "similarities", "target_share"]


def behaviour_features(rise: Sequence[Tensor], count: int) -> list[Tensor]:
    """Per behaviour the indices of the `count` features its contexts raise most, beyond the others' mean.

    rise: per behaviour f(context) - f(neutral) [pairs, n]. Features whose mean a context does not raise are
    never taken, so a behaviour may have fewer; ValueError if one has none.
    """
    means = torch.stack([found.mean(0) for found in rise])
    others = (means.sum(0) - means) / max(len(means) - 1, 1)
    chosen = []
    for own, other in zip(means, others, strict=True):
        score = torch.where(own > 0, own - other, torch.full_like(own, -torch.inf))
        best = score.topk(min(count, len(score)))
        kept = best.indices[best.values > 0]
        if not len(kept):
            raise ValueError("a behaviour's contexts raise no feature of the dictionary beyond the others")
        chosen.append(kept.sort().values)
    return chosen


def target_share(steered: Tensor, neutral: Tensor, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator and denominator per pair; mask [N, n]: 1 for the target features of the pair."""
    return ((steered - neutral) * mask).sum(1), ((context - neutral) * mask).sum(1)


def off_target(steered: Tensor, neutral: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator and denominator per pair; mask [N, n]: 1 for the target features of the pair."""
    others = 1 - mask
    return ((steered - neutral).abs() * others).sum(1), (neutral * others).sum(1)


class WordVectors:
    """Vectors of words: means of the model's input embeddings of their tokens.

    The embeddings are stripped of their mean and their first d / 100 principal components (at least one),
    which all words share (Mu and Viswanath 2018, arXiv:1702.01417).
    """

    def __init__(self, embeddings: Tensor, tokenizer) -> None:
        table = embeddings.detach().double()
        table = table - table.mean(0)
        _, _, directions = torch.linalg.svd(table, full_matrices=False)
        common = directions[: max(1, round(table.shape[1] / 100))]
        self._table = table - table @ common.T @ common
        self._tokenizer = tokenizer
        self._known: dict[str, Tensor] = {}

    @classmethod
    def of_model(cls, name: str) -> WordVectors:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        return cls(model.get_input_embeddings().weight, AutoTokenizer.from_pretrained(name))

    def vector(self, text: str) -> Tensor:
        """The vector of a text, of length 1; 0 if the text has no tokens."""
        if text not in self._known:
            tokens = self._tokenizer.encode(text, add_special_tokens=False)
            mean = self._table[tokens].mean(0) if tokens else torch.zeros(self._table.shape[1]).double()
            self._known[text] = mean / mean.norm().clamp_min(1e-12)
        return self._known[text]


def similarities(vectors: WordVectors, pairs: Sequence[Pair], words: Sequence[str]) -> Tensor:
    """[N] of the produced words, each against its pair's behaviours; 0 for no word."""
    found = []
    for pair, word in zip(pairs, words, strict=True):
        own = vectors.vector(pair.lead + word) if word else None
        per_target = [
            max(float(own @ vectors.vector(pair.lead + wanted)) for wanted in pair.words[target])
            if own is not None
            else 0.0
            for target in pair.targets
        ]
        found.append(sum(per_target) / len(per_target))
    return torch.tensor(found, dtype=torch.float64)
