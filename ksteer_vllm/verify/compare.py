"""How far apart two answers to one request are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ksteer_vllm.verify.subject import Answer

__all__ = ["apart", "grid", "step_apart"]

GRIDS = 11
"""How many step sizes are tried: 1 to 2^-10."""

GRID_ERROR = 2e-5
"""The error of a log-probability in float32."""

ENOUGH_GAPS = 8


def step_apart(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """The largest difference between two steps' log-probabilities.

    Each step holds its most likely tokens. A token missing from one of them is there at most as likely as the
    least likely token it holds.

    Args:
        one: Token id -> log-probability.
        other: The same of another answer.

    Returns:
        The difference, in nats.
    """
    found = 0.0
    for a, b in ((one, other), (other, one)):
        least = min(b.values())
        for token, log_prob in a.items():
            found = max(found, abs(log_prob - b[token]) if token in b else log_prob - least)
    return found


def apart(one: Answer, other: Answer, steps: int | None = None) -> float:
    """The largest difference of log-probabilities, up to and including the first step whose tokens differ.

    Args:
        one: An answer.
        other: Another answer to the same request.
        steps: Compare only this many first steps; default: all.

    Returns:
        The difference, in nats.
    """
    found = 0.0
    pairs = zip(one.tokens, other.tokens, one.steps, other.steps, strict=False)
    for index, (a, b, step_a, step_b) in enumerate(pairs):
        if index == steps:
            break
        found = max(found, step_apart(step_a, step_b))
        if a != b:
            break
    return found


def grid(answers: Iterable[Answer]) -> float | None:
    """The step to which logits were rounded, in nats; None if they look like float32.

    Differences of one step's log-probabilities are differences of logits, which in half precision are
    multiples of a power of two: 2^-4 for bfloat16 logits between 8 and 16, half of that for each halving.
    """
    gaps = []
    for answer in answers:
        for step in answer.steps:
            best = max(step.values())
            gaps += [best - value for value in step.values() if value != best]
    for exponent in range(GRIDS):
        size = 2.0**-exponent
        if all(abs(gap - round(gap / size) * size) < GRID_ERROR for gap in gaps):
            return size if len(gaps) > ENOUGH_GAPS else None
    return None
