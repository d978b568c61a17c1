"""The ways to steer that are compared, and the settings each may choose from.

All are chosen among alike: the same number of layers and of strengths, on the same questions, by the same
rule (`benchmarks.verifiable.choose`). Strengths are total lengths, so that one step and eight steps of a
gradient move as far: a step has 1/steps of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LAYER_SETS", "WAYS", "Setting", "Way"]

LAYER_SETS: tuple[tuple[int, ...], ...] = ((12,), (9, 12, 15))
"""Blocks of 30: 40 % of the depth, and around it."""


@dataclass(frozen=True)
class Setting:
    """Where and how far. strength: per layer, in the way's own unit."""

    layers: tuple[int, ...]
    strength: float


@dataclass(frozen=True)
class Way:
    """One way to steer.

    Attributes:
        probe: The fit whose probe it uses, or "" for prompting alone.
        method: The spec's method.
        fields: Further fields of the edit.
        strengths: What to choose from, for one layer; at three layers each has half of it.
        single_layer: Whether its fit exists at one layer only.
    """

    probe: str
    method: str
    strengths: tuple[float, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    single_layer: bool = False

    @property
    def settings(self) -> list[Setting]:
        """All there are to choose from."""
        sets = LAYER_SETS[:1] if self.single_layer else LAYER_SETS
        return [
            Setting(layers, round(strength * (1.0 if len(layers) == 1 else 0.5), 4))
            for layers in sets
            for strength in self.strengths
        ]

    def spec(self, targets: Sequence[str], setting: Setting) -> dict[str, Any]:
        """A request's spec, as JSON."""
        steps = self.fields.get("num_steps", 1)
        return {
            "probe": self.probe,
            "method": self.method,
            "target": list(targets),
            "layers": list(setting.layers),
            "alpha": setting.strength / steps,
            **self.fields,
        }


_EUCLIDEAN = (0.3, 0.4, 0.55, 0.8, 1.1)
"""Of the layer's mean |x - mean(x)|."""
_METRIC = (0.3, 0.45, 0.6, 0.8, 1.1)
"""Of the layer's mean length of x - mean(x) in the metric itself."""
_SHARE = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Of what the fit found."""


def _gradient(metric: str, steps: int, **more: Any) -> Way:
    strengths = _EUCLIDEAN if metric == "raw" else _METRIC
    fields = {"unit": "normalised", "num_steps": steps, **more}
    return Way("mlp", "gradient", strengths, fields if metric == "raw" else {**fields, "metric": metric})


WAYS: dict[str, Way] = {
    "K-Steering, raw, 1 step": _gradient("raw", 1),
    "K-Steering, raw, 8 steps": _gradient("raw", 8),
    "K-Steering, variance, 1 step": _gradient("variance", 1),
    "K-Steering, variance, 8 steps": _gradient("variance", 8),
    "K-Steering, covariance, 1 step": _gradient("covariance", 1),
    "K-Steering, covariance, 8 steps": _gradient("covariance", 8),
    "K-Steering, variance, softmin": _gradient("variance", 8, loss="softmin"),
    "K-Steering, variance, until .9": _gradient("variance", 8, until={"target": 0.9}),
    "linear probe": Way("linear", "gradient", _EUCLIDEAN, {"unit": "normalised", "num_steps": 1}),
    "linear probe, variance": Way(
        "linear", "gradient", _METRIC, {"unit": "normalised", "num_steps": 1, "metric": "variance"}
    ),
    "CAA": Way("caa", "add", _EUCLIDEAN, {"unit": "normalised"}),
    "ACE": Way("ace", "ace", _SHARE),
    "LoReFT": Way("loreft", "loreft", _SHARE, single_layer=True),
    "LoReST": Way("lorest", "lorest", _SHARE, single_layer=True),
    "MAT-Steer": Way("mat_steer", "mat_steer", _SHARE),
    "random direction": Way("caa", "random", _EUCLIDEAN, {"unit": "normalised"}),
}
"""By the name in the tables."""
