"""How far apart two runs of one plain request are, which every other check must tolerate."""

from __future__ import annotations

from ksteer_vllm.verify.compare import apart, grid
from ksteer_vllm.verify.trial import Trial

__all__ = ["EXACT", "measure_noise"]

EXACT = 1e-3
"""Tolerance in float32: batches of other shapes sum in other orders, which moves log-probabilities by 1e-6 to
1e-5."""

FACTOR = 4
"""The tolerance, as a multiple of the noise and, in half precision, of the rounding of logits."""
LENGTH = 120

MOST = 0.26
"""Noise above which nothing can be shown: a little over two steps of bfloat16 logits between 16 and 32."""


def measure_noise(trial: Trial) -> None:
    """Set the trial's tolerance from one plain request: twice alone under salts of their own, once with its
    own prompt cached, once beside two other plain requests."""
    length = min(LENGTH, trial.facts.max_model_len - 16)
    prompt = trial.prompt(length)
    first = trial.alone(trial.request(prompt, max_tokens=8))
    second = trial.request(prompt, max_tokens=8)
    again = [trial.alone(second), trial.alone(second)]
    others = [trial.request(trial.prompt(length - 9 * k), max_tokens=8) for k in (1, 2)]
    again.append(trial.together([others[0], trial.request(prompt, max_tokens=8), others[1]])[1])
    trial.floor = max(apart(first, other) for other in again)
    rounding = grid([first, *again])
    trial.is_coarse = rounding is not None
    trial.tolerance = max(EXACT, FACTOR * (rounding or 0.0), FACTOR * trial.floor)
    kind = "float32" if rounding is None else f"rounded to {rounding:.2g}, half precision"
    trial.judge(
        "noise floor",
        f"one plain request run four ways differs by at most {trial.floor:.1e}; logits look {kind}; "
        f"tolerance {trial.tolerance:.1e}",
        "plain requests are not repeatable: cached blocks or requests beside them change them, or the "
        "engine's arithmetic is too noisy for the other checks to show anything",
        trial.floor <= MOST,
        floor=trial.floor,
        tolerance=trial.tolerance,
        rounding=rounding,
    )
