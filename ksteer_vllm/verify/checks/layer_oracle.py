"""Edits act at the layer they name, by an oracle: transformers with a hook on the same weights."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.errors import listing
from ksteer_vllm.verify.checks.fires import STEERED
from ksteer_vllm.verify.oracle import Oracle
from ksteer_vllm.verify.trial import Fired, Trial

__all__ = ["NAME", "check_against_oracle"]

NAME = "edits act at their layer"

FACTOR = 4
SHARE = 0.1
"""How far off the oracle may be, as a share of an edit's effect. A token within rounding of a ReLU's kink may
fall on the other side of it; another layer is off by about the effect itself."""

CLEAR = 0.5
"""In half precision an edit acts at the layer that is nearer than any other, and than no edit, by this."""

NAMED = 6
"""The most causes of one kind that are spelt out."""

FOREIGN = 0.5
"""Plain answers this far from the oracle's do not come from these weights."""


def check_against_oracle(trial: Trial, oracle: Oracle) -> None:
    """The fire check's own answers, teacher-forced, against the oracle hooked at the layer asked for."""
    assert trial.short_plain is not None
    prompt = trial.short_prompt
    plain = oracle.apart(prompt, trial.short_plain)
    allowed = max(trial.tolerance, FACTOR * plain if trial.is_coarse else 0.0)
    foreign = plain > (FOREIGN if trial.is_coarse else trial.tolerance)
    trial.judge(
        "plain equals transformers",
        f"a plain request's log-probabilities differ from the oracle's by {plain:.1e}",
        "plain requests are edited, or the model folder does not hold the engine's weights",
        not foreign,
        difference=plain,
    )
    name = NAME
    if foreign:
        trial.skipped(name, "the oracle does not describe this engine's plain requests")
        return
    if trial.edits_others:
        trial.skipped(name, "tokens are edited that no edit names, which the oracle does not edit")
        return
    checkable = [fired for fired in trial.edits if fired.plan.card.probe is not None]
    unchecked = [fired.plan.name for fired in trial.fired if fired not in checkable]
    if not checkable:
        trial.skipped(
            name, f"no edit has both a visible effect and its probe folder here: {listing(unchecked)}"
        )
        return
    errors, wrong, unclear = {}, [], []
    for fired in checkable:
        error = errors[fired.plan.name] = oracle.apart(prompt, fired.answer, fired.plan, STEERED)
        if error <= min(allowed, CLEAR * fired.effect):
            continue
        distances = _distances(oracle, prompt, fired)
        best = min(distances, key=lambda layer: distances[layer])
        others = [distance for layer, distance in distances.items() if layer != best]
        is_near = distances[best] <= SHARE * fired.effect
        is_clear = distances[best] <= CLEAR * min([*others, fired.effect])
        if best == fired.plan.layer and (is_near or (trial.is_coarse and is_clear)):
            continue
        if best != fired.plan.layer and (
            is_clear if trial.is_coarse else is_near or distances[best] <= allowed
        ):
            wrong.append((fired, f"edits asked for at layer {fired.plan.layer} act at layer {best}"))
        elif trial.is_coarse:
            unclear.append(fired.plan.name)
        else:
            wrong.append((fired, _unlike(fired)))
    figures = {"difference": errors, "unchecked": unchecked}
    if wrong:
        says = ", ".join(f"{fired.plan.name}: {errors[fired.plan.name]:.2g}" for fired, _ in wrong[:NAMED])
        trial.failed(
            name, f"{len(wrong)} of {len(checkable)} differ from the oracle: {says}",
            _joined([cause for _, cause in wrong]), **figures,
        )  # fmt: skip
        return
    if len(unclear) == len(checkable):
        trial.skipped(
            name, f"in half precision no layer is clearly the nearest: {listing(unclear)}", **figures
        )
        return
    unchecked += unclear
    clear = [fired for fired in checkable if fired.plan.name not in unclear]
    largest = max(errors[fired.plan.name] for fired in clear)
    least = min(fired.effect for fired in clear)
    trial.passed(
        name,
        f"{len(clear)} steered answers differ from transformers hooked at their layers by at most "
        f"{largest:.1e}, where the edits' effects are {least:.2g} or more"
        f"{'; not: ' + listing(unchecked) if unchecked else ''}",
        **figures,
    )


def _distances(oracle: Oracle, prompt: Sequence[int], fired: Fired) -> dict[int, float]:
    """Layer -> how far the answer is from the same edit hooked there; those the probe cannot be used at
    are computed with the tensors of its own."""
    return {
        layer: oracle.apart(prompt, fired.answer, fired.plan, STEERED, layer)
        for layer in range(oracle.num_layers)
    }


def _unlike(fired: Fired) -> str:
    return (
        f"edits asked for at layer {fired.plan.layer} are not what probe {fired.plan.card.name!r} defines, "
        "at this layer or another"
    )


def _joined(causes: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(causes))
    more = f"; and {len(distinct) - NAMED} more" if len(distinct) > NAMED else ""
    return "; ".join(distinct[:NAMED]) + more
