"""What steering costs beside its aim: a divergence on neutral text, and what the model still knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.verifiable.behaviours import BEHAVIOURS
from benchmarks.verifiable.choices import correct, option_scores, read_choices
from benchmarks.verifiable.neutral import NeutralTexts
from benchmarks.verifiable.questions import reporting
from benchmarks.verifiable.ways import WAYS, Setting
from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.journal import Journal

__all__ = ["Effects", "side_effects"]

NEUTRAL = 12
"""Questions whose unsteered replies are read again."""

Effects = dict[str, Any]
"""`right`: per item 1 or 0; `kl`: per question in nats; each a mean over the behaviours."""


def side_effects(bench: Bench, journal: Journal, settings: Mapping[str, Setting]) -> dict[str, Effects]:
    """Divergence and knowledge of every way at its setting, and of the unsteered model.

    Each behaviour is steered towards in turn; the multiple-choice items are shared out among them, so that
    every way answers each item once.

    Returns:
        By the way's name, and `unsteered`.
    """
    items, names = read_choices(), list(BEHAVIOURS)
    neutral: NeutralTexts | None = None
    found: dict[str, Effects] = {}
    for name, setting in {"unsteered": None, **settings}.items():
        key = f"effects:{name}:{setting}"
        if key not in journal:
            neutral = neutral or NeutralTexts(bench.llm, reporting()[:NEUTRAL])
            right = np.zeros(len(items), bool)
            kl: list[NDArray[np.float64]] = []
            for number, behaviour in enumerate(names):
                spec = None if setting is None else WAYS[name].spec((behaviour,), setting)
                mine = list(range(number, len(items), len(names)))
                chosen = [items[index] for index in mine]
                right[mine] = correct(chosen, option_scores(bench.llm, chosen, spec))
                if spec is not None:
                    kl.append(neutral.kl({**spec, "where": "generation"}))
            journal.add(
                key,
                {
                    "right": right.astype(int).tolist(),
                    "kl": np.mean(kl, 0).tolist() if kl else [0.0] * NEUTRAL,
                },
            )
        found[name] = journal[key]
    return found
