"""From what was observed to figures: one row per pair, and their summary with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.pairs.dictionary import Dictionary
from benchmarks.pairs.engine import Ask, Bank
from benchmarks.pairs.environment import Environment, Pair
from benchmarks.pairs.measures import (
    WordVectors,
    behaviour_features,
    off_target,
    similarities,
    target_share,
)

__all__ = ["MEASURES", "Scorer", "summarise"]

MEASURES = ("target", "off_target", "similarity", "hit")
_DRAWS = 1000
_CHUNK = 1024


class Scorer:
    """Scores what a bank shows, against the neutral and the context readings of the same pairs."""

    def __init__(
        self, bank: Bank, environment: Environment, dictionary: Dictionary, vectors: WordVectors, count: int
    ) -> None:
        """count: features of a behaviour, chosen on the selection pairs."""
        self._bank, self._environment, self._dictionary, self._vectors = (
            bank,
            environment,
            dictionary,
            vectors,
        )
        self._references: dict[Pair, tuple[Tensor, Tensor]] = {}
        self.features: dict[str, list[int]] = {}
        pairs = environment.pairs_of("selection", 1)
        self._read(pairs)
        rise = []
        for behaviour in environment.behaviours:
            own = [self._references[pair] for pair in pairs if pair.targets == (behaviour,)]
            rise.append(torch.stack([context - neutral for neutral, context in own]))
        found = behaviour_features(rise, count)
        self.features = dict(zip(environment.behaviours, (chosen.tolist() for chosen in found), strict=True))

    def refer(self, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The pairs unsteered, without and with their contexts (variants `unsteered` and `context`).

        To be called before `score` of the same pairs.
        """
        readings = zip(("unsteered", "context"), self._read(pairs), strict=True)
        frames = [self._frame(pairs, words, f).assign(variant=name) for name, (words, f) in readings]
        return pd.concat(frames, ignore_index=True)

    def score(self, asks: Sequence[Ask], description: str) -> pd.DataFrame:
        """One row per ask: the word, and the numerators and denominators of the measures."""
        words, x = self._bank.observe(asks, description)
        pairs, frames = [ask.pair for ask in asks], []
        for start in range(0, len(asks), _CHUNK):  # the features of all asks may not fit in memory
            some = slice(start, start + _CHUNK)
            frames.append(self._frame(pairs[some], words[some], self._dictionary.encode(x[some])))
        return pd.concat(frames, ignore_index=True)

    def _read(self, pairs: Sequence[Pair]) -> list[tuple[list[str], Tensor]]:
        """Words and features of the pairs without and with their contexts, unsteered."""
        found = []
        for with_context in (False, True):
            words, x = self._bank.observe([Ask(pair, None, with_context) for pair in pairs], "unsteered")
            found.append((words, self._dictionary.encode(x)))
        features = zip(found[0][1], found[1][1], strict=True)
        self._references |= dict(zip(pairs, features, strict=True))
        return found

    def _frame(self, pairs: Sequence[Pair], words: Sequence[str], steered: Tensor) -> pd.DataFrame:
        neutral, context = (torch.stack([self._references[pair][part] for pair in pairs]) for part in (0, 1))
        mask = torch.zeros_like(steered)
        for row, pair in zip(mask, pairs, strict=True):
            row[[index for target in pair.targets for index in self.features[target]]] = 1
        risen, wanted = target_share(steered, neutral, context, mask)
        changed, others = off_target(steered, neutral, mask)
        return pd.DataFrame(
            {
                "targets": [" + ".join(pair.targets) for pair in pairs],
                "size": [len(pair.targets) for pair in pairs],
                "place": [pair.place for pair in pairs],
                "word": list(words),
                "risen": risen.double().numpy(),
                "wanted": wanted.double().numpy(),
                "changed": changed.double().numpy(),
                "others": others.double().numpy(),
                "behaviours": self._by_behaviour(pairs, steered - neutral, context - neutral),
                "similarity": similarities(self._vectors, pairs, words).numpy(),
                "hit": [float(w in pair.target_words()) for w, pair in zip(words, pairs, strict=True)],
            }
        )

    def _by_behaviour(self, pairs: Sequence[Pair], risen: Tensor, wanted: Tensor) -> list[np.ndarray]:
        """Per pair the rise of each of its behaviours' own features and the wanted one, [2, behaviours]."""
        found = []
        for row, pair in enumerate(pairs):
            own = [self.features[target] for target in pair.targets]
            sums = [[part[row, chosen].sum().item() for chosen in own] for part in (risen, wanted)]
            found.append(np.array(sums))
        return found


def summarise(rows: pd.DataFrame, by: Sequence[str], seed: int | None = None) -> pd.DataFrame:
    """The measures per group; with a seed, also 95 % bootstrap intervals over pairs, NAME_low, NAME_high.

    weakest: of each set of behaviours the smallest share of its behaviours' own features, mean over sets.
    """
    found = []
    for key, own in rows.groupby(list(by), sort=False):
        row = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        row |= {**_measures(own), "weakest": _weakest(own)}
        if seed is not None:
            row |= _intervals(own, seed)
        found.append({**row, "pairs": len(own)})
    return pd.DataFrame(found)


def _measures(rows: pd.DataFrame) -> dict[str, float]:
    sums = rows[["risen", "wanted", "changed", "others"]].sum()
    return {
        "target": sums["risen"] / sums["wanted"],
        "off_target": sums["changed"] / sums["others"],
        "similarity": rows["similarity"].mean(),
        "hit": rows["hit"].mean(),
    }


def _weakest(rows: pd.DataFrame) -> float:
    shares = []
    for _, own in rows.groupby("targets", sort=False):
        risen, wanted = np.stack(own["behaviours"].to_list()).sum(0)  # [2, behaviours]
        if (wanted > 0).any():
            shares.append((risen[wanted > 0] / wanted[wanted > 0]).min())
    return float(np.mean(shares)) if shares else float("nan")


def _intervals(rows: pd.DataFrame, seed: int) -> dict[str, float]:
    values = rows[["risen", "wanted", "changed", "others", "similarity", "hit"]].to_numpy()
    drawn = np.random.default_rng(seed).integers(len(values), size=(_DRAWS, len(values)))
    means = values[drawn].mean(1)
    of = {
        "target": means[:, 0] / means[:, 1],
        "off_target": means[:, 2] / means[:, 3],
        "similarity": means[:, 4],
        "hit": means[:, 5],
    }
    return {
        f"{name}_{side}": float(np.quantile(found, share))
        for name, found in of.items()
        for side, share in (("low", 0.025), ("high", 0.975))
    }
