"""Edits act in the order of their layers: what can be checked without the model's weights.

A weak edit with a report is a sensor: how far it moves a token, and what its probe reads there, depends on
the token's residual stream. It must see a strong edit at another layer if and only if that layer is below.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.errors import listing
from ksteer_vllm.verify.compare import apart
from ksteer_vllm.verify.trial import Fired, Trial

__all__ = ["check_edges", "check_order"]

WIDEST = 12
"""The most layers named in one request."""

ENVELOPE = 64
"""Bytes of a spec around its stack."""

WEAK = 1e-3
WINDOW = {"prompt": [5, 11]}
BOOSTS, BOOST = 5, 2.5
"""How many strengths are tried until an edit reaches the next token, and the factor between them."""

SEEN = 0.03
"""A sensor sees an edit that changes a probability by this much, or its shift by this share."""

Reading = Mapping[int, Sequence[Sequence[float]]]
"""Layer -> for each token, its shift and label probabilities."""


def check_order(trial: Trial) -> None:
    """Per layer one request: a strong edit there, and a sensor at every other layer."""
    name = "layers act in order"
    fired = {found.plan.layer: found for found in reversed(trial.edits)}  # the first one at each layer
    if not trial.facts.reports or len(fired) < 2:
        reason = (
            "without reports"
            if not trial.facts.reports
            else "steering has a visible effect at fewer than two layers"
        )
        trial.skipped(name, f"{reason}: there is no order to see")
        return
    layers = sorted(fired)
    size = _window(trial, fired)
    if size < 2:
        trial.skipped(
            name, "the engine's limits (max_stack and others) allow no stack of two edits at two layers"
        )
        return
    swapped, uncertain, pairs = [], [], 0
    for first in range(0, max(1, len(layers) - 1), size - 1):  # windows share a layer
        some = layers[first : first + size]
        for layer, other, change in _changes(trial, [fired[layer] for layer in some]):
            pairs += 1
            if other < layer and change > SEEN:
                swapped.append((layer, other, change))
            elif other > layer and change <= SEEN:
                uncertain.append((layer, other, change))
    if swapped or uncertain:
        says = [f"layer {b} sees an edit at layer {a} ({c:.2g})" for a, b, c in swapped]
        says += [f"layer {b} does not see an edit at layer {a} ({c:.1e})" for a, b, c in uncertain]
        pairs_named = listing(sorted({f"{min(a, b)} and {max(a, b)}" for a, b, _ in swapped + uncertain}))
        trial.failed(
            name, "; ".join(says[:4]), f"edits act at the wrong layers: {pairs_named} are out of order"
        )
        return
    trial.passed(
        name,
        f"{pairs} pairs of layers ({listing(layers)}): an edit is seen by the sensors above it, and by none "
        "below",
    )


def _window(trial: Trial, fired: Mapping[int, Fired]) -> int:
    """How many layers one request may name, within WIDEST and the engine's limits."""
    limits = trial.facts.limits
    size = min(WIDEST, limits.get("max_stack", WIDEST), limits.get("max_request_layers", WIDEST))
    longest = max(len(json.dumps(found.plan.spec(WINDOW))) for found in fired.values()) + 2
    return min(size, (limits.get("max_spec_bytes", 2**16) - ENVELOPE) // longest)


def _changes(trial: Trial, fired: Sequence[Fired]) -> list[tuple[int, int, float]]:
    """(layer of a strong edit, layer of a sensor, how much the sensor's reading changes)."""
    layers = [found.plan.layer for found in fired]
    sensors = [found.plan.scaled(WEAK).spec(WINDOW) for found in fired]
    rest = _read(trial, sensors, layers)
    changes = []
    for index, found in enumerate(fired):
        edits = [*sensors[:index], found.plan.spec(WINDOW), *sensors[index + 1 :]]
        now = _read(trial, edits, layers)
        changes += [
            (found.plan.layer, other, _change(rest[other], now[other]))
            for other in layers
            if other != found.plan.layer
        ]
    return changes


def _read(trial: Trial, edits: Sequence[Mapping[str, Any]], layers: Sequence[int]) -> Reading:
    answer = trial.alone(trial.request(trial.short_prompt, {"stack": list(edits), "report": True}, 1))
    report = answer.report or {"edits": []}
    found: dict[int, Sequence[Sequence[float]]] = {layer: () for layer in layers}
    for edit in report["edits"]:
        for layer in edit["layers"]:
            found[layer["layer"]] = [
                [token["shift"] or 0.0, *(token["before"] or {}).values()] for token in layer["tokens"]
            ]
    return found


def _change(rest: Sequence[Sequence[float]], now: Sequence[Sequence[float]]) -> float:
    found = 0.0
    for (shift, *before), (shift_now, *before_now) in zip(rest, now, strict=False):
        if shift > 0:
            found = max(found, abs(shift_now - shift) / shift)
        found = max([found, *(abs(a - b) for a, b in zip(before, before_now, strict=True))])
    return found


def check_edges(trial: Trial) -> bool:
    """An edit of prompt tokens at the last layer reaches no later token; at the one below it does.

    Anchors the order at the top. Returns whether either layer could be looked at.
    """
    name, last = "the last layer is the last", trial.facts.num_layers - 1
    top = next((fired for fired in trial.edits if fired.plan.layer == last), None)
    below = next((fired for fired in trial.edits if fired.plan.layer == last - 1), None)
    if top is None and below is None:
        trial.skipped(name, f"neither layer {last} nor layer {last - 1} is open with a visible effect")
        return False
    seen, cause, near = [], "", False
    if below is not None:
        reach = _reach(trial, below)
        seen.append(f"at layer {last - 1} reach the next token by {reach:.1e}")
        near = 4 * trial.floor < reach <= trial.tolerance
        if reach <= trial.tolerance:
            cause = f"edits asked for at layer {last - 1} act at the last layer, {last}, or above"
    if top is not None:
        seen.append(f"at layer {last} by {top.ahead:.1e}")
        if top.ahead > trial.tolerance:
            cause, near = f"edits asked for at layer {last} act below it", False
    if near:
        trial.skipped(name, f"edits of earlier tokens {'; '.join(seen)}: too near the noise to tell")
        return True
    trial.judge(name, f"edits of earlier tokens {'; '.join(seen)}", cause, not cause)
    return True


def _reach(trial: Trial, fired: Fired) -> float:
    """How far edits of the prompt, except its last token, move the next one; stronger ones if need be."""
    assert trial.short_plain is not None
    reach, plan = fired.ahead, fired.plan
    for _ in range(BOOSTS):
        if reach > trial.tolerance:
            break
        spec = plan.spec({"prompt": [0, len(trial.short_prompt) - 1]})
        answer = trial.alone(trial.request(trial.short_prompt, spec, 1))
        reach = max(reach, apart(answer, trial.short_plain, 1))
        plan = plan.scaled(BOOST)
    return reach
