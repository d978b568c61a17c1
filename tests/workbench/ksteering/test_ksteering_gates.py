"""What `KSteering` warns of and refuses: labels the replies do not show, a classifier at chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import KSteering, UsageError
from ksteer_vllm.bench.chance import INTERVAL
from ksteer_vllm.ksteering import fitting
from ksteer_vllm.probes.probe import Probe
from testbed.families import random_family_probe
from testbed.probes import LABELS
from tests.workbench.fit.test_visibility import rows

AT_CHANCE = {
    "replies": {"labels": {name: {"balanced_accuracy": 0.5, INTERVAL: [0.4, 0.6]} for name in LABELS[:1]}}
}
PIP = "pip-0.1.2"


class _Run(Exception):
    """The gate was passed."""


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Fits to rows in no time, to a classifier with given metrics; returns what was told."""

    def told(*, true: bool, metrics: dict[str, Any], compat: str | None = None) -> str:
        found: Probe = random_family_probe("mlp", metrics=metrics)
        monkeypatch.setattr(fitting, "fit_to_rows", lambda *_, **__: found)
        steering = KSteering("no-model", compat=compat, chat=True)
        steering.fit(dataset=rows(true=true, questions=60), positions="reply")
        return " ".join(capsys.readouterr().err.split())

    return told


def test_replies_that_do_not_show_their_labels_are_warned_of(fit: Callable[..., str]) -> None:
    assert fit(true=True, metrics={}) == ""
    assert "warning: the replies do not show their labels: " in fit(true=False, metrics={})
    assert fit(true=False, metrics={}, compat=PIP) == "", "the package knows no such gate"


def test_a_classifier_at_chance_is_warned_of(fit: Callable[..., str]) -> None:
    says = f"warning: the classifier does not tell {LABELS[0]} 0.50 [0.40, 0.60] from other rows"
    assert says in fit(true=True, metrics=AT_CHANCE)
    assert fit(true=True, metrics=AT_CHANCE, compat=PIP) == ""


def test_no_strength_is_sought_for_a_classifier_at_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise _Run

    monkeypatch.setattr("ksteer_vllm.ksteering.engine.Engine.run", run)
    random_family_probe("mlp", metrics=AT_CHANCE).save(tmp_path)
    with KSteering.load(tmp_path, "no-model", chat=True) as steering:
        with pytest.raises(UsageError, match=rf"does not tell {LABELS[0]} 0.50 .*allow_chance_classifier"):
            steering.sweep_alpha([1.0], ["why?"], target_labels=LABELS[1:2], avoid_labels=LABELS[:1])
        with pytest.raises(_Run):
            steering.sweep_alpha([1.0], ["why?"], target_labels=LABELS[1:2])
        with pytest.raises(_Run):
            steering.sweep_alpha([1.0], ["why?"], target_labels=LABELS[:1], allow_chance_classifier=True)
