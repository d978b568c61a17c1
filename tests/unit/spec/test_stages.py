"""In which stage every edit of a stack runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksteer_vllm import SteeringSpec
from ksteer_vllm.spec.stages import assign_stages

pytestmark = pytest.mark.pure

WHEN = {"probe": "p", "label": "a", "above": 0.5}


def edit(*layers: int, where: Any = "generation", **fields: Any) -> dict[str, Any]:
    """A canonical edit, as admission makes it."""
    fields = {"probe": "p", "target": ["a"], "alpha": 1, "layers": list(layers), "where": where, **fields}
    return SteeringSpec.parse(fields).edits()[0].canonical()


def used(edits: Sequence[Any], stages: Sequence[int]) -> list[tuple[int, ...]]:
    """The stages every edit takes: its own, and the one before for its condition."""
    return [
        (last - 1, last) if "condition" in one else (last,) for one, last in zip(edits, stages, strict=True)
    ]


def is_valid(edits: Sequence[Any], stages: Sequence[int]) -> bool:
    """By going through the stages as a layer does: nothing meets, and everybody comes in the order asked."""
    taken = used(edits, stages)
    if min(stage for own in taken for stage in own) < 0:
        return False
    for stage in {stage for own in taken for stage in own}:
        here = [one for one, own in zip(edits, taken, strict=True) if stage in own]
        if any((one["where"], one.get("fade")) != (here[0]["where"], here[0].get("fade")) for one in here):
            return False
        layers = [layer for one in here for layer in one["layers"]]
        if len(layers) != len(set(layers)):
            return False
    for layer in {layer for one in edits for layer in one["layers"]}:
        asked = [index for index, one in enumerate(edits) if layer in one["layers"]]
        if sorted(asked, key=lambda index: taken[index]) != asked:
            return False
    return True


def fewest(edits: Sequence[Any]) -> int:
    """The smallest number of stages any assignment of one profile needs, by trying them all."""
    total = sum(len(own) for own in used(edits, [1] * len(edits)))
    return min(
        max(stages) + 1
        for stages in itertools.product(range(total), repeat=len(edits))
        if is_valid(edits, stages)
    )


@pytest.mark.parametrize(
    ("edits", "stages"),
    [
        ([edit(1)], [0]),
        ([edit(0, 1, 2)], [0]),
        ([edit(0), edit(1), edit(2, 3)], [0, 0, 0]),
        ([edit(1), edit(1)], [0, 1]),
        ([edit(0, 1), edit(1, 2), edit(2, 3)], [0, 1, 2]),
        ([edit(0, 1), edit(2), edit(1, 2)], [0, 0, 1]),
        ([edit(1, condition=WHEN)], [1]),
        ([edit(1), edit(1, condition=WHEN)], [0, 2]),
        ([edit(1, condition=WHEN), edit(1)], [1, 2]),
        ([edit(0, condition=WHEN), edit(1, condition=WHEN)], [1, 1]),
        ([edit(0, condition=WHEN), edit(1)], [1, 0]),
        ([edit(0), edit(1, where="prompt")], [0, 1]),
        ([edit(0), edit(1, fade=3)], [0, 1]),
        ([edit(0, fade=3), edit(1, fade=3), edit(2, fade=4)], [0, 0, 1]),
        ([edit(0), edit(1, compat={"version": "pip-0.1.2"})], [0, 1]),
        ([edit(0), edit(1, where="prompt"), edit(2)], [0, 1, 0]),
        ([edit(0), edit(1, where="both", condition=WHEN), edit(2, where="both")], [0, 2, 1]),
    ],
    ids=[
        "one", "one at many layers", "a plan by layer", "twice the same layer", "a chain",
        "two free, then both", "a condition", "then a condition", "a condition first",
        "a plan of conditions", "beside a condition", "another where", "another fade", "equal fades",
        "a compat", "back to the first where", "another where's condition",
    ],
)  # fmt: skip
def test_stages(edits: list[Any], stages: list[int]) -> None:
    assert assign_stages(edits) == stages
    assert is_valid(edits, stages)


def test_a_plan_over_every_layer_of_a_deep_model_needs_one_stage() -> None:
    assert set(assign_stages([edit(layer) for layer in range(80)])) == {0}


layers = st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)
profiles = st.tuples(st.sampled_from(["generation", "both"]), st.sampled_from([None, 4]))


@st.composite
def stacks(draw: st.DrawFn, profile: tuple[str, int | None] | None = None, most: int = 7) -> list[Any]:
    edits = []
    for _ in range(draw(st.integers(1, most))):
        where, fade = draw(profiles) if profile is None else profile
        condition = draw(st.sampled_from([None, None, WHEN]))
        edits.append(edit(*draw(layers), where=where, fade=fade, condition=condition))
    return edits


@given(stacks())
@settings(max_examples=150)
def test_every_assignment_keeps_the_order_and_shares_only_what_is_alike(edits: list[Any]) -> None:
    stages = assign_stages(edits)
    assert is_valid(edits, stages)
    assert max(stages) < sum(len(own) for own in used(edits, stages)), "no stage is left empty"


@given(stacks(("both", None), most=4))
@settings(max_examples=40)
def test_edits_of_one_profile_take_as_few_stages_as_any_assignment(edits: list[Any]) -> None:
    assert max(assign_stages(edits)) + 1 == fewest(edits)
