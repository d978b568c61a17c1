"""One strength for all tones, chosen for each method by the same rule on the calibration questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ksteer_vllm.demo.corpus import Question
from ksteer_vllm.demo.generate import Ask, Method, generate_replies
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.experiments.calibration.choose import TOLERANCE, best, middle, plateau
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.spec import SteeringSpec

__all__ = ["METHODS", "RULE", "Calibration", "Point", "calibrate"]

METHODS: tuple[Method, ...] = ("gradient", "add")

RULE = (
    "one alpha per method for all six tones; score: the mean over tones of the share of replies to "
    "calibration questions that show the tone and are well formed; of a log-spaced grid, extended while the "
    "best lies at an end and refined once, the middle one of the strengths around the best that score within "
    f"{TOLERANCE} of it"
)

_GRID = tuple(2.0**k for k in range(-6, 2))
_EXTENSION = 3
_MAX_EXTENSIONS = 3
_REFINEMENT = 2.0**0.5


@dataclass(frozen=True)
class Point:
    """One strength: shares over the calibration replies of all six tones."""

    alpha: float
    score: float
    shows_tone: float
    well_formed: float


@dataclass(frozen=True)
class Calibration:
    """The chosen strength of one method, and every strength that was tried, ascending."""

    method: Method
    alpha: float
    points: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(llm: Any, probe: Probe, questions: Sequence[Question], *, seed: int) -> list[Calibration]:
    """Choose alpha for K-Steering and for CAA. Every round is one batch over both methods."""
    tried: dict[Method, dict[float, Point]] = {method: {} for method in METHODS}
    start = {method: _typical_alpha(probe, method) for method in METHODS}
    wanted = {method: [start[method] * factor for factor in _GRID] for method in METHODS}
    for _ in range(_MAX_EXTENSIONS):
        _try(llm, wanted, tried, questions, seed)
        wanted = {method: _beyond_the_end(tried[method]) for method in METHODS}
        if not any(wanted.values()):
            break
    _try(llm, {method: _refined(tried[method]) for method in METHODS}, tried, questions, seed)
    return [
        Calibration(
            method,
            middle(plateau(_scores(tried[method]))),
            tuple(point for _, point in sorted(tried[method].items())),
        )
        for method in METHODS
    ]


def _try(
    llm: Any,
    wanted: dict[Method, list[float]],
    tried: dict[Method, dict[float, Point]],
    questions: Sequence[Question],
    seed: int,
) -> None:
    asks = [
        Ask(question, (tone,), method, alpha)
        for method, alphas in wanted.items()
        for alpha in alphas
        for tone in TONES
        for question in questions
    ]
    if not asks:
        return
    replies = generate_replies(llm, asks, seed=seed)
    for method, alphas in wanted.items():
        for alpha in alphas:
            chosen = [r for r in replies if r.ask.method == method and r.ask.alpha == alpha]
            tried[method][alpha] = Point(
                alpha,
                score=sum(reply.on_target for reply in chosen) / len(chosen),
                shows_tone=sum(reply.shows_target for reply in chosen) / len(chosen),
                well_formed=sum(reply.reading.well_formed for reply in chosen) / len(chosen),
            )


def _scores(points: dict[float, Point]) -> dict[float, float]:
    return {alpha: point.score for alpha, point in points.items()}


def _refined(points: dict[float, Point]) -> list[float]:
    """A finer grid over the plateau and up to the coarse strengths next to it."""
    near = plateau(_scores(points))
    alpha, found = near[0] / 2 * _REFINEMENT, []
    while alpha < near[-1] * 2 / 1.01:
        if all(abs(math.log(alpha / known)) > 0.01 for known in points):
            found.append(alpha)
        alpha *= _REFINEMENT
    return found


def _beyond_the_end(points: dict[float, Point]) -> list[float]:
    """Strengths past the end of the grid at which the best one lies, if it lies at an end."""
    alphas, top = sorted(points), best(_scores(points))
    if len({point.score for point in points.values()}) == 1:
        return []
    if top in alphas[:1]:
        return [top * 2.0**-k for k in range(1, _EXTENSION + 1)]
    if top in alphas[-1:]:
        return [top * 2.0**k for k in range(1, _EXTENSION + 1)]
    return []


def _typical_alpha(probe: Probe, method: Method) -> float:
    """The alpha that moves a typical vector by about its own length: where the grid begins.

    Vectors are drawn from the probe's input statistics; the gradient is that of the first tone's loss.
    """
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(256, probe.metadata.model.hidden_size, generator=generator)
    x = probe.tensors["input_mean"] + probe.tensors["input_std"] * spread
    length = x.norm(dim=1).mean().item()
    coefficients = torch.full((len(probe.labels),), 1 / (len(probe.labels) - 1))
    coefficients[0] = -1.0
    if method == "add":
        return length / (coefficients @ probe.tensors["label_vectors"]).norm().item()
    x.requires_grad_()
    gradient = torch.autograd.grad((probe.logits(x) @ coefficients).sum(), x)[0]
    return length / (SteeringSpec.model_fields["num_steps"].default * gradient.norm(dim=1).mean().item())
