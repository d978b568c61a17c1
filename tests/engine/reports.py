"""Requests that ask for reports, and what any report of them must be.

Tolerance 1e-3 on probabilities and relative shifts: engine and oracle differ by about 1e-5 in float32; the
record of another token differs by more than 1e-2, which is checked of two completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ksteer_vllm import SteeringSpec
from ksteer_vllm.report import report
from ksteer_vllm.verify.oracle import steered_positions

TOLERANCE = 1e-3
VISIBLE = 1e-2

WARM: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 2.0, "num_steps": 2}
CASES: dict[str, dict[str, Any]] = {
    "generation": WARM,
    "both, two layers": {**WARM, "avoid": ["cold"], "layers": [0, 2], "where": "both", "num_steps": 3},
    "prompt": {**WARM, "where": "prompt"},
    "windows": {**WARM, "where": {"prompt": [3, 8], "generation": [2, 5]}},
    "second probe": {"probe": "moods", "target": ["glad"], "alpha": 6.0, "num_steps": 1, "where": "both"},
    "reflect": {"probe": "tones", "avoid": ["warm"], "method": "reflect", "where": "both"},
}


def wanting(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**spec, "report": True}


def layers_of(found: Any) -> dict[int, dict[int, dict[str, Any]]]:
    """layer -> position -> record, of a report of one edit; positions ascend and occur once."""
    (edit,) = found["edits"]
    layers = {}
    for layer in edit["layers"]:
        positions = [token["position"] for token in layer["tokens"]]
        assert positions == sorted(set(positions))
        layers[layer["layer"]] = dict(zip(positions, layer["tokens"], strict=True))
    return layers


def expected_positions(spec: Mapping[str, Any], num_prompt: int, num_generated: int) -> list[int]:
    """Of the tokens that go through the model: all but the last one generated."""
    (edit,) = SteeringSpec.parse(dict(spec)).edits()
    return steered_positions(edit, None, num_prompt, num_prompt + num_generated - 1)


def check_positions(output: Any, spec: Mapping[str, Any], index: int = 0) -> Any:
    """The report of a completion, which has a record for every accepted token, at each of its layers."""
    found = report(output.outputs[index])
    assert found is not None
    wanted = expected_positions(spec, len(output.prompt_token_ids), len(output.outputs[index].token_ids))
    layers = layers_of(found)
    assert list(layers) == spec.get("layers", [2 if spec["probe"] == "moods" else 1])
    for records in layers.values():
        assert list(records) == wanted
    moved = {p for records in layers.values() for p, record in records.items() if record["shift"] != 0}
    assert found["tokens_steered"] == len(moved)
    assert len(moved) > 0.8 * len(wanted)  # where every ReLU above is shut, the gradient is zero
    return found


def check_same(left: Any, right: Any, message: str = "") -> None:
    """Two reports of the same request, within TOLERANCE."""
    assert left is not None
    a, b = layers_of(left), layers_of(right)
    assert {layer: list(records) for layer, records in a.items()} == {
        layer: list(records) for layer, records in b.items()
    }, message
    for layer, records in a.items():
        for position, record in records.items():
            assert distance(record, b[layer][position]) < TOLERANCE, (message, layer, position)


def distance(left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """The largest difference of two records of the same labels, steps included."""
    assert left["steps"] == right["steps"]
    pairs = [(left["shift"], right["shift"])]
    for side in ("before", "after"):
        assert left[side].keys() == right[side].keys()
        pairs += [(left[side][label], right[side][label]) for label in left[side]]
    return max(abs(a - b) for a, b in pairs)
