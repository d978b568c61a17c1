"""A spec that is built in Python is refused with the error, and in the words, that a client is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ksteer_vllm import SpecError, SteeringSpec, Where
from ksteer_vllm.spec.clauses import Condition, Hinge, Until
from ksteer_vllm.spec.compat import Compat
from ksteer_vllm.spec.edit import Edit

pytestmark = pytest.mark.pure

GOOD: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 1.0}
FIELDS = ", ".join(SteeringSpec.model_fields)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"alpha": "0.5"}, "ksteer.alpha: Input should be a valid number (got '0.5')"),
        ({"targets": ["warm"]}, f"ksteer.targets: unknown field; allowed: {FIELDS}; did you mean 'target'?"),
        ({"Alpha": 1}, f"ksteer.Alpha: unknown field; allowed: {FIELDS}; did you mean 'alpha'?"),
        ({"float": 1}, f"ksteer: unknown field; allowed: {FIELDS}"),
        ({"unit": "normalized"}, "'raw' or 'normalised' (got 'normalized'); did you mean 'normalised'?"),
        ({"method": "gradiant"}, "(got 'gradiant'); did you mean 'gradient'?"),
        (
            {"where": {"promt": True}},
            "ksteer.where.promt: unknown field; allowed: prompt, generation; did you",
        ),
        ({"until": {"targets": 0.5}}, "ksteer.until.targets: unknown field; allowed: target, avoid; did you"),
        ({"condition": {"probe": "p", "lable": "l", "above": 0}}, "did you mean 'label'?"),
        ({"stack": [GOOD, {**GOOD, "alfa": 1}]}, "ksteer.stack.1.alfa: unknown field"),
        ({"probe": None}, "ksteer.probe: required"),
        ({"avoid": ["warm"]}, "ksteer.target: label on both sides, target and avoid: warm"),
    ],
    ids=str,
)
def test_in_python_and_over_http_alike(wrong: dict[str, Any], says: str) -> None:
    fields = wrong if "stack" in wrong else {**GOOD, **wrong}
    with pytest.raises(SpecError) as built:
        SteeringSpec(**fields)
    with pytest.raises(SpecError) as sent:
        SteeringSpec.parse(fields)
    assert str(built.value) == str(sent.value)
    assert built.value.field == sent.value.field
    assert says in str(built.value)
    assert "\n" not in str(built.value)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Where(prompt=(3, 1)), "ksteer.prompt: the window [3, 1) is empty"),
        (lambda: Where(prompts=True), "unknown field; allowed: prompt, generation; did you mean 'prompt'?"),
        (Until, "ksteer: give target, avoid or both"),
        (lambda: Hinge(hinge=0.2), "ksteer.hinge: Input should be greater than 0.5 (got 0.2)"),
        (lambda: Compat(version="pip-0.1.3"), "(got 'pip-0.1.3'); did you mean 'pip-0.1.2'?"),
        (lambda: Edit(target=["warm"]), "ksteer.probe: required"),
        (lambda: Condition(probe="p", label="l"), "ksteer: give either above or below"),
    ],
)  # fmt: skip
def test_parts_of_a_spec(build: Callable[[], Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        build()
    assert says in str(caught.value)
