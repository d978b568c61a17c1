"""Steering fires: records at exactly the layer and for exactly the tokens asked for, and an effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ksteer_vllm.errors import listing
from ksteer_vllm.verify.compare import apart
from ksteer_vllm.verify.edits import PlannedEdit
from ksteer_vllm.verify.subject import Answer, CheckRequest
from ksteer_vllm.verify.trial import SHORT, Fired, Trial
from ksteer_vllm.verify.verification import EFFECT

__all__ = ["GENERATED", "STEERED", "WHERE", "check_firing"]

WHERE = {"prompt": [5, 11], "generation": [1, 3]}
GENERATED = 4
STEERED = (*range(5, 11), SHORT, SHORT + 1)
"""Absolute positions WHERE names in a prompt of SHORT tokens: generation index j is SHORT - 1 + j."""

WAVES = 8
LEAST_SHIFT, MOST_SHIFT, GOOD_SHIFT = 0.1, 1.5, 0.5


@dataclass(frozen=True)
class _Seen:
    """What a report says about an edit. wrong: missing or extra positions, or other layers, in words."""

    records: int
    shift: float
    least: float
    wrong: str


def check_firing(trial: Trial) -> None:
    """One request per (layer, probe), its strength scaled until the shift is of ordinary size."""
    trial.short_prompt = trial.prompt(SHORT)
    plain = trial.short_plain = trial.alone(trial.request(trial.short_prompt, max_tokens=GENERATED))
    done: dict[str, Fired] = {}
    waiting = list(trial.plans)
    for _ in range(WAVES):
        answers = trial.together([_request(trial, plan) for plan in waiting])
        again = []
        for plan, answer in zip(waiting, answers, strict=True):
            effect, ahead = apart(answer, plain), apart(answer, plain, 1)
            done[plan.name] = Fired(plan, trial.short_prompt, answer, effect, ahead)
            factor = _factor(trial, done[plan.name])
            if factor is not None:
                again.append(plan.scaled(factor))
        waiting = again
        if not waiting:
            break
    trial.fired = [done[plan.name] for plan in trial.plans]
    _judge_effects(trial)
    _judge_records(trial)


def _request(trial: Trial, plan: PlannedEdit) -> CheckRequest:
    more = {"report": True} if trial.facts.reports else {}
    return trial.request(trial.short_prompt, plan.spec(WHERE, **more), GENERATED)


def _factor(trial: Trial, fired: Fired) -> float | None:
    """What to multiply the strength by, or None if it is good."""
    seen = _seen(fired.plan, fired.answer) if trial.facts.reports else None
    weak = fired.effect < trial.visible
    if seen is None:
        return 4.0 if weak else None
    if seen.records == 0:
        return None
    if seen.shift == 0:
        return 100.0
    if seen.shift > MOST_SHIFT:
        return GOOD_SHIFT / seen.shift
    if seen.shift < LEAST_SHIFT:
        return min(GOOD_SHIFT / seen.shift, 1e4)
    return 1.5 if weak and seen.shift < 1 else None


def _seen(plan: PlannedEdit, answer: Answer) -> _Seen:
    report = answer.report or {"edits": []}
    found = {
        layer["layer"]: {token["position"]: token["shift"] for token in layer["tokens"]}
        for edit in report["edits"]
        for layer in edit["layers"]
        if layer["tokens"]
    }
    here = found.get(plan.layer, {})
    shifts = [shift if shift is not None else 0.0 for shift in here.values()]
    problems = []
    if others := sorted(set(found) - {plan.layer}):
        problems.append(f"records at layer {listing(others)} too")
    if missing := sorted(set(STEERED) - set(here)):
        problems.append(f"no records of positions {listing(missing)}")
    if extra := sorted(set(here) - set(STEERED)):
        problems.append(f"records of positions {listing(extra)}, which were not asked for")
    return _Seen(
        len(shifts), sum(shifts) / max(len(shifts), 1), min(shifts, default=0.0), "; ".join(problems)
    )


def _judge_effects(trial: Trial) -> None:
    dead = [fired for fired in trial.fired if fired.effect <= trial.tolerance]
    weak = [fired for fired in trial.fired if trial.tolerance < fired.effect < trial.visible]
    effects = [fired.effect for fired in trial.fired]
    figures = {fired.plan.name: fired.effect for fired in trial.fired}
    name = EFFECT
    if dead:
        trial.failed(
            name,
            f"{len(dead)} of {len(trial.fired)} steered requests answer as if they were plain: "
            f"{listing(fired.plan.name for fired in dead)}",
            _cause(trial, dead),
            effect=figures,
        )
    elif weak:
        trial.failed(
            name,
            f"the effect at {listing(fired.plan.name for fired in weak)} is too near the noise, "
            f"{trial.tolerance:.1e}, to be told from it",
            "the edits are too weak to prove anything, whatever their strength",
            effect=figures,
        )
    else:
        trial.passed(
            name,
            f"log-probabilities move by {min(effects):.2g} to {max(effects):.2g} in {len(effects)} requests, "
            f"one per layer, probe and metric: {listing(fired.plan.name for fired in trial.fired)}",
            effect=figures,
        )


def _cause(trial: Trial, dead: Sequence[Fired]) -> str:
    layers = sorted({fired.plan.layer for fired in dead})
    alive = {fired.plan.layer for fired in trial.fired if fired not in dead}
    if not alive:
        return (
            f"the steering op does nothing: it was removed, or no layer is attached (asked for: layer "
            f"{listing(layers)})"
        )
    gone = [layer for layer in layers if layer not in alive]
    if gone:
        return f"steering is not attached at layer {listing(gone)}"
    return f"the rows of {listing(fired.plan.card.name for fired in dead)} reach no token"


def _judge_records(trial: Trial) -> None:
    name = "reports name layers and tokens"
    if not trial.facts.reports:
        trial.skipped(name, "the engine was started without reports")
        return
    seen = {fired.plan.name: _seen(fired.plan, fired.answer) for fired in trial.fired}
    wrong = {plan: found.wrong for plan, found in seen.items() if found.wrong}
    still = [plan for plan, found in seen.items() if not found.wrong and found.least <= 0]
    shifts = [found.shift for found in seen.values()]
    if wrong or still:
        says = "; ".join([f"{plan}: {text}" for plan, text in list(wrong.items())[:4]])
        if still:
            says += f"{'; ' if says else ''}a token was not moved at {listing(still)}"
        bare = [fired for fired in trial.fired if seen[fired.plan.name].records == 0]
        if len(bare) == len(trial.fired) or bare:
            cause = _cause(trial, bare)
        elif still and not wrong:
            cause = "the edit is dropped or zero: see the probe's weights, or activations that are not finite"
        else:
            trial.edits_others = any("not asked for" in text for text in wrong.values())
            cause = (
                "tokens that no edit names are edited: they point at rows of other requests"
                if trial.edits_others
                else "tokens point at rows by wrong positions"
            )
        trial.failed(name, says, cause)
        return
    trial.passed(
        name,
        f"records at exactly the layer and the {len(STEERED)} tokens asked for; relative shift "
        f"{min(shifts):.2g} to {max(shifts):.2g}",
        shift={plan: found.shift for plan, found in seen.items()},
    )
