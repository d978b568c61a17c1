"""Single checks of `ksteer verify`, with an oracle and engines that only say what they are told to."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ksteer_vllm.verify import run
from ksteer_vllm.verify.checks.layer_oracle import NAME, check_against_oracle
from ksteer_vllm.verify.checks.noise import measure_noise
from ksteer_vllm.verify.checks.prefix_cache import UNTOLD, check_prefix_cache
from ksteer_vllm.verify.edits import PlannedEdit
from ksteer_vllm.verify.offline import card_of
from ksteer_vllm.verify.oracle import Oracle
from ksteer_vllm.verify.run import _check_layers
from ksteer_vllm.verify.subject import Answer, CheckRequest, Facts
from ksteer_vllm.verify.trial import Fired, Trial
from ksteer_vllm.verify.verification import Finding
from testbed.families import random_family_probe
from testbed.models import NUM_LAYERS, make_model

CARD = card_of("tones", random_family_probe("mlp"))
EFFECT = 0.8
ANSWER = Answer((3,), ({3: -0.5, 4: -1.0},))


def plan_at(layer: int) -> PlannedEdit:
    return PlannedEdit(CARD, layer, CARD.labels[0], "gradient", 1.0, 1)


class Told:
    """A subject whose answers a function makes."""

    def __init__(self, answer: Callable[[CheckRequest], Answer] = lambda _: ANSWER, **limits: int) -> None:
        self._answer = answer
        self._limits = {"max_steps": 8, **limits}

    def facts(self) -> Facts:
        layers = tuple(range(NUM_LAYERS))
        return Facts("e", "w", NUM_LAYERS, layers, (CARD,), tuple(range(50)), 256, True, self._limits)

    def alone(self, request: CheckRequest) -> Answer:
        return self._answer(request)

    def together(self, requests: Sequence[CheckRequest]) -> list[Answer]:
        return [self._answer(request) for request in requests]

    def close(self) -> None: ...


def trial_of(subject: Told, *, is_coarse: bool = False) -> Trial:
    """After a fire check in which every layer had an effect."""
    trial = Trial(subject, subject.facts(), [plan_at(layer) for layer in range(NUM_LAYERS)], seed=0)
    trial.short_prompt, trial.short_plain = trial.prompt(24), ANSWER
    trial.fired = [Fired(plan, trial.short_prompt, ANSWER, EFFECT, EFFECT) for plan in trial.plans]
    trial.is_coarse = is_coarse
    trial.tolerance = 0.1 if is_coarse else 1e-3
    return trial


def found(trial: Trial) -> dict[str, Finding]:
    return {finding.name: finding for finding in trial.findings}


class Distances:
    """An oracle told how far the engine is from it: plain, and per (layer asked for, layer hooked)."""

    num_layers = NUM_LAYERS

    def __init__(self, plain: float, edits: Callable[[int, int], float]) -> None:
        self._plain = plain
        self._edits = edits

    def apart(
        self, prompt: Any, answer: Any, plan: Any = None, positions: Any = (), layer: Any = None
    ) -> float:
        if plan is None:
            return self._plain
        return self._edits(plan.layer, plan.layer if layer is None else layer)


def shifted(by: int, near: float, far: float = EFFECT) -> Callable[[int, int], float]:
    """An engine whose edits act so many layers above, `near` the oracle there; the last stays the last."""
    return lambda asked, hooked: near if hooked == min(asked + by, NUM_LAYERS - 1) else far


def against(oracle: Distances, *, is_coarse: bool) -> Finding:
    trial = trial_of(Told(), is_coarse=is_coarse)
    check_against_oracle(trial, oracle)  # type: ignore[arg-type]
    return found(trial)[NAME]


def test_edits_at_wrong_layers_fail_in_half_precision() -> None:
    """Rounding of 0.2 where edits move by 0.8: neither the exact tolerance nor a tenth of the effect."""
    assert against(Distances(0.03, shifted(0, 0.2)), is_coarse=True).status == "passed"
    wrong = against(Distances(0.03, shifted(1, 0.2)), is_coarse=True)
    assert wrong.status == "failed"
    assert wrong.cause.startswith("edits asked for at layer 0 act at layer 1; ")


def test_rounding_as_large_as_an_effect_lets_no_layer_pass() -> None:
    """4 times plain's own 0.3 is more than any edit does, so it excuses nothing."""
    wrong = against(Distances(0.3, shifted(1, 0.2)), is_coarse=True)
    assert wrong.status == "failed"
    assert "act at layer 1" in wrong.cause


def test_layers_that_are_alike_are_no_failure_in_half_precision() -> None:
    assert against(Distances(0.03, shifted(1, 0.3, 0.4)), is_coarse=True).status == "skipped"


def test_in_float32_what_is_like_no_layer_fails() -> None:
    assert against(Distances(1e-5, shifted(1, 0.05)), is_coarse=False).cause.startswith("edits asked for at")
    assert (
        "not what probe 'tones' defines" in against(Distances(1e-5, shifted(1, 0.2)), is_coarse=False).cause
    )


def checked_layers(
    monkeypatch: pytest.MonkeyPatch, oracle: Any, *, is_coarse: bool = False
) -> tuple[Trial, Any]:
    monkeypatch.setattr(run, "Oracle", oracle)
    trial = trial_of(Told(max_stack=1), is_coarse=is_coarse)
    return trial, _check_layers(trial, "w", True, {})


def test_an_oracle_that_cannot_say_leaves_the_order_to_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    unclear = Distances(0.03, shifted(1, 0.3, 0.4))
    trial, gaps = checked_layers(monkeypatch, lambda *_, **__: unclear, is_coarse=True)
    assert found(trial)[NAME].status == "skipped"
    assert {"layers act in order", "the last layer is the last"} <= set(found(trial))
    assert gaps[0].startswith("at which block a layer's edits act: ")


def test_an_oracle_that_can_say_leaves_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    trial, gaps = checked_layers(monkeypatch, lambda *_, **__: Distances(1e-5, shifted(0, 1e-5)))
    assert (found(trial)[NAME].status, gaps) == ("passed", [])
    assert "layers act in order" not in found(trial)


@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel"), KeyError("rope"), AttributeError("x"), MemoryError()]
)
@pytest.mark.parametrize("when", ["load", "forward"])
def test_an_oracle_that_breaks_is_no_failed_check(
    monkeypatch: pytest.MonkeyPatch, when: str, error: Exception
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    broken_later = SimpleNamespace(apart=broken, num_layers=NUM_LAYERS)
    trial, gaps = checked_layers(monkeypatch, broken if when == "load" else lambda *_, **__: broken_later)
    assert found(trial)[NAME].status == "skipped"
    assert type(error).__name__ in found(trial)[NAME].says
    assert gaps


def test_weights_that_do_not_fit_are_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = str(make_model("llama", tmp_path / "model"))
    assert Oracle(model, NUM_LAYERS).num_layers == NUM_LAYERS
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(MemoryError, match="in float32 it takes"):
        Oracle(model, NUM_LAYERS)


class Replicas:
    """Engines behind one address, asked in turn; their caches do not ask how a prompt was steered."""

    def __init__(self, engines: int, *, told: bool) -> None:
        self._caches: list[dict[tuple[int, ...], Any]] = [{} for _ in range(engines)]
        self._next = 0
        self._told = told

    def __call__(self, request: CheckRequest) -> Answer:
        cache = self._caches[self._next % len(self._caches)]
        self._next += 1
        spec = request.spec if isinstance(request.spec, Mapping) else None
        steered = None if spec is None else (spec["target"][0], spec["alpha"])
        cached = 0
        if request.salt is None:
            block = request.prompt[:128]
            cached = len(block) if block in cache else 0
            steered = cache.setdefault(block, steered)
        value = -0.5 - random.Random(repr(steered)).random()
        return Answer((3,), ({3: value},), cached=cached if self._told else None)


def caught(engines: int, *, told: bool) -> tuple[set[str], list[str]]:
    """(the failed checks of pairs, the gaps)."""
    trial = trial_of(Told(Replicas(engines, told=told)))
    check_prefix_cache(trial)
    names = {
        finding.name
        for finding in trial.findings
        if finding.status == "failed" and finding.name != "cache: a steered reply as prompt"
    }
    return names, trial.gaps


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("told", [True, False])
def test_an_unsalted_cache_behind_several_engines(engines: int, told: bool) -> None:
    names, gaps = caught(engines, told=told)
    assert names == {"cache: plain after steered", "cache: steered after plain", "cache: two specs"}
    assert gaps == ([] if told else [UNTOLD])


def test_noise_that_hides_everything_fails() -> None:
    values = iter([-0.5, -0.5, -0.9, -0.5, -0.5, -0.5])
    noisy = Trial(subject := Told(lambda _: Answer((3,), ({3: next(values)},))), subject.facts(), [])
    measure_noise(noisy)
    assert noisy.findings[0].status == "failed"
    assert "not repeatable" in noisy.findings[0].cause
    quiet = Trial(subject := Told(), subject.facts(), [])
    measure_noise(quiet)
    assert quiet.findings[0].status == "passed"
