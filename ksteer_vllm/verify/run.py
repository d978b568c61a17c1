"""One verification, from the subject's facts to what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ksteer_vllm.errors import UsageError, choices, listing
from ksteer_vllm.verify.checks.fires import check_firing
from ksteer_vllm.verify.checks.layer_oracle import NAME, check_against_oracle
from ksteer_vllm.verify.checks.layer_order import check_edges, check_order
from ksteer_vllm.verify.checks.noise import measure_noise
from ksteer_vllm.verify.checks.plain import check_alpha_zero, check_plain_after, check_plain_beside
from ksteer_vllm.verify.checks.prefix_cache import check_prefix_cache
from ksteer_vllm.verify.edits import PlannedEdit, plan_edit
from ksteer_vllm.verify.oracle import Oracle
from ksteer_vllm.verify.subject import Card, Facts, RefusedError, Subject
from ksteer_vllm.verify.trial import Trial
from ksteer_vllm.verify.verification import EFFECT, Verification

__all__ = ["verify"]

LEAST_LENGTH = 96
"""The fewest tokens of context an engine must have."""

Check = Callable[[Trial], object]


def verify(
    subject: Subject,
    *,
    layers: Sequence[int] | None = None,
    probes: Sequence[str] | None = None,
    model_folder: str | None = None,
    with_oracle: bool = True,
    source: Mapping[str, Any] | None = None,
    seed: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Check a running engine.

    A request that is refused after the first plain ones is a failed check, not an error.

    Args:
        subject: The engine.
        layers: The layers to check; default: every open layer.
        probes: The names of the probes to check; default: every loaded one.
        model_folder: The engine's weights, for the oracle; default: the engine's own, if on this machine.
        with_oracle: Use the oracle if possible; without it only the order of the layers is checked.
        source: Options of transformers' `from_pretrained`, such as trust_remote_code.
        seed: The seed of the prompts; default: a new one each time, so that no cache holds them.
        tell: Called with what is being done, in a few words.

    Returns:
        What was found.

    Raises:
        UsageError: If there is nothing to check, or the engine lacks the layers or probes that are named.
        UnreachableError: If the engine cannot be reached.
        RefusedError: If it refuses a plain request.
    """
    started = time.monotonic()
    tell("asking for layers and probes")
    facts = subject.facts()
    if facts.max_model_len < LEAST_LENGTH:
        raise UsageError(
            f"max_model_len: verifying needs {LEAST_LENGTH} tokens, the engine allows {facts.max_model_len}"
        )
    plans, bare = _plans(facts, layers, probes)
    trial = Trial(subject, facts, plans, tell=tell, seed=seed)
    for layer in bare:
        trial.skipped(f"layer {layer}", "no loaded probe can be used there")
    measure_noise(trial)
    if trial.is_coarse:  # steps of rounded activations part at every ReLU's kink, and so would the oracle's
        trial.plans = [plan.in_one_step() for plan in plans]
    _run(trial, EFFECT, check_firing)
    gaps = _check_layers(trial, model_folder or facts.weights, with_oracle, source or {})
    _run(trial, "alpha 0 is plain", check_alpha_zero)
    _run(trial, "plain beside steered", check_plain_beside)
    _run(trial, "prefix cache", check_prefix_cache)
    _run(trial, "plain after steered", check_plain_after)
    return Verification(
        subject=facts.name,
        versions=facts.versions,
        layers=sorted({plan.layer for plan in plans}),
        probes=sorted({plan.card.name for plan in plans}),
        tolerance=trial.tolerance,
        noise_floor=trial.floor,
        requests=trial.requests,
        prompt_tokens=trial.prompt_tokens,
        generated_tokens=trial.generated_tokens,
        seconds=time.monotonic() - started,
        findings=trial.findings,
        not_checked=[*gaps, *trial.gaps, *facts.gaps],
    )


def _run(trial: Trial, name: str, check: Check) -> None:
    """A request the engine refuses fails the check that sent it."""
    trial.tell(name)
    try:
        check(trial)
    except RefusedError as error:
        trial.failed(
            name, f"the engine refused a request: {error}", f"a request of the check {name!r} is refused"
        )


def _plans(
    facts: Facts, layers: Sequence[int] | None, probes: Sequence[str] | None
) -> tuple[list[PlannedEdit], list[int]]:
    """(one edit per layer, probe and metric, the layers first; the layers no probe can be used at).

    Raises UsageError for layers or probes that are not there, or if there is no edit to ask for.
    """
    cards = list(facts.cards)
    if probes:
        unknown = sorted(set(probes) - {card.name for card in cards})
        if unknown:
            loaded = choices(unknown[0], (card.name for card in cards))
            raise UsageError(f"probe: the engine has no {listing(unknown)}; loaded: {loaded}")
        cards = [card for card in cards if card.name in probes]
    wanted = list(facts.open_layers) if layers is None else list(layers)
    if closed := sorted(set(wanted) - set(facts.open_layers)):
        raise UsageError(
            f"layers: {listing(closed)} not open for steering; open: {listing(facts.open_layers, 200)}"
        )
    if not cards:
        raise UsageError("no probe is loaded, so there is nothing to steer with")
    chosen: list[PlannedEdit] = []
    bare, used = [], dict.fromkeys((card.name for card in cards), 0)
    for layer in wanted:
        options = [
            plan
            for card in cards
            if _usable(card, layer) and (plan := plan_edit(card, layer, facts.limits["max_steps"]))
        ]
        if not options:
            bare.append(layer)
            continue
        plan = min(options, key=lambda option: (used[option.card.name], option.card.own_layer != layer))
        used[plan.card.name] += 1
        chosen.append(plan)
    for card in cards:
        places = [layer for layer in wanted if _usable(card, layer)]
        if used[card.name] or not places:
            continue
        layer = card.own_layer if card.own_layer in places else places[0]
        if plan := plan_edit(card, layer, facts.limits["max_steps"]):
            chosen.append(plan)
    chosen += _in_metrics(cards, chosen, facts.limits["max_steps"])
    if not chosen:
        raise UsageError("no loaded probe can be used at an open layer with a target and a strength")
    return chosen, bare


def _in_metrics(cards: Sequence[Card], chosen: Sequence[PlannedEdit], max_steps: int) -> list[PlannedEdit]:
    """An edit for every metric of a probe that none of its edits has, at a layer where one of them acts."""
    found = []
    for card in cards:
        plans = [plan for plan in chosen if plan.card is card]
        for metric in sorted(set(card.metrics) - {plan.metric for plan in plans}):
            places = [plan.layer for plan in plans if not card.layers or plan.layer in card.metrics[metric]]
            plan = plan_edit(card, places[0], max_steps, metric) if places else None
            found += [plan] if plan else []
    return found


def _usable(card: Card, layer: int) -> bool:
    return not card.layers or layer in card.layers


def _check_layers(trial: Trial, weights: str, with_oracle: bool, source: Mapping[str, Any]) -> list[str]:
    """Check layers with the oracle if possible, else by their order. Returns what stays unchecked."""
    if len(trial.fired) < len(trial.plans):
        return ["where edits act: the steered requests did not run"]
    oracle = _oracle(trial, weights, with_oracle, source)
    if oracle is not None and _held_against(oracle, trial):
        return []
    if trial.edits_others:
        return ["where edits act: tokens are edited that no edit names"]
    _run(trial, "layers act in order", check_order)
    if check_edges(trial):
        seen = (
            "only the order of layers and the last layer were checked; a layer that acts one place off "
            "without passing another open one would go unnoticed"
        )
    else:
        seen = "only the order of layers was checked; a shift of all of them alike would go unnoticed"
    return [f"at which block a layer's edits act: {seen}"]


def _held_against(oracle: Oracle, trial: Trial) -> bool:
    """Whether the oracle could tell where edits act. A model it cannot run is not a fault of the engine."""
    trial.tell(NAME)
    try:
        check_against_oracle(trial, oracle)
    except Exception as error:
        trial.skipped(NAME, f"the oracle cannot run the model: {_brief(error)}")
    return trial.findings[-1].status != "skipped"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


def _oracle(trial: Trial, weights: str, with_oracle: bool, source: Mapping[str, Any]) -> Oracle | None:
    """The oracle, or None with a finding that says why."""
    lacks = [] if weights else ["a folder of the model's weights (--model-folder)"]
    if all(plan.card.probe is None for plan in trial.plans):
        lacks.append("the probes' folders (--probe NAME=FOLDER)")
    reason = f"an oracle on the same weights needs {' and '.join(lacks)}" if lacks else ""
    if not with_oracle:
        reason = "the oracle was left out"
    if not reason:
        trial.tell("loading the model in transformers")
        try:
            probes = {card.name: card.probe for card in trial.facts.cards if card.probe is not None}
            return Oracle(weights, trial.facts.num_layers, probes, **source)
        except Exception as error:  # of transformers, or of the model's own code
            reason = f"the model cannot be loaded in transformers: {_brief(error)}"
    trial.skipped(NAME, reason)
    return None
