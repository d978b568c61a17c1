"""Activations that are not finite, at one token of a request; what is counted without looking at tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ksteer_vllm
from ksteer_vllm.admission.tally import tally
from testbed.compare import assert_same
from testbed.probes import random_probe
from tests.support.engines import generate, start_engine, worker

BROKEN = 77
"""The token whose activations the last layer makes infinite. Nothing attends to what that layer puts out."""
LAST = 3
SPEC = {"probe": "late", "target": ["warm"], "alpha": 2.0, "where": "both"}


@pytest.fixture(scope="module")
def engine(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("late")
    random_probe(layer=LAST).save(folder)
    llm = start_engine(llama, {"late": folder}, steering={"layers": "all"}, enable_prefix_caching=False)
    model = worker(llm).model_runner.model.model
    seen: dict[str, torch.Tensor] = {}

    def remember(_: Any, arguments: tuple[Any, ...]) -> None:
        seen["ids"] = arguments[0]

    def break_one(_: Any, __: Any, output: torch.Tensor) -> None:
        output[seen["ids"][: len(output)] == BROKEN] = float("inf")

    model.embed_tokens.register_forward_pre_hook(remember)
    model.layers[LAST].mlp.register_forward_hook(break_one)
    return llm


def test_the_edit_is_dropped_counted_and_reported(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """In the plain path, and in the general one, which requests with a report take. Neighbours stay as is."""
    asked = [[token if token != BROKEN else 5 for token in prompt] for prompt in prompts(3, 12)]
    healthy = generate(engine, asked, [SPEC, SPEC, None], max_tokens=4)
    assert worker(engine).ksteer_state.snapshot()["dropped_edits"] == 0
    asked[0][6] = asked[2][3] = BROKEN
    mixed = generate(engine, asked, [{**SPEC, "report": True}, SPEC, None], max_tokens=4)
    assert worker(engine).ksteer_state.snapshot()["dropped_edits"] == 1
    assert_same(mixed[1], healthy[1])
    report = ksteer_vllm.report(mixed[0])
    assert report is not None
    json.dumps(report, allow_nan=False)
    tokens = report["edits"][0]["layers"][0]["tokens"]
    assert [token["position"] for token in tokens] == list(range(15))
    for token in tokens:
        assert token["dropped"] == (token["position"] == 6)
        assert (token["shift"] is None) == (token["steps"] is None) == token["dropped"]
    assert report["tokens_steered"] == 14
    assert report["mean_shift"] > 0
    asked[0][6] = 5
    asked[1][2] = asked[1][3] = BROKEN
    again = generate(engine, asked, [SPEC, SPEC, None], max_tokens=4)
    assert worker(engine).ksteer_state.snapshot()["dropped_edits"] == 3
    assert all(len(output.outputs[0].token_ids) == 4 for output in again)


TALLIED: list[dict[str, Any]] = [
    SPEC,
    {**SPEC, "where": "generation"},
    {**SPEC, "where": "prompt"},
    {**SPEC, "where": {"prompt": [2, 5], "generation": [1, 3]}},
    {**SPEC, "where": {"prompt": [11, 12], "generation": [0, 2]}},
    {**SPEC, "fade": 3},
    {**SPEC, "alpha": 0.0},
    {**SPEC, "layers": [1, LAST], "num_steps": 3},
    {"stack": [{**SPEC, "where": {"prompt": [0, 6]}}, {**SPEC, "where": {"prompt": [3, 9]}}]},
    {**SPEC, "method": "add", "where": {"generation": [0, 100]}},
]


def test_tokens_counted_from_windows_are_those_of_the_reports(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    registry = engine.llm_engine.input_processor.ksteer_admission.registry
    asked = [[token if token != BROKEN else 5 for token in prompt] for prompt in prompts(len(TALLIED), 12)]
    outputs = generate(engine, asked, [{**spec, "report": True} for spec in TALLIED], max_tokens=6)
    for spec, prompt, output in zip(TALLIED, asked, outputs, strict=True):
        report = ksteer_vllm.report(output)
        assert report is not None
        admitted = registry.admit(spec)
        assert admitted is not None
        counted = tally(admitted.for_request(len(prompt), 6).edits, len(prompt) + 6 - 1)
        assert counted["late"].tokens == report["tokens_steered"], spec
        steps = [
            token["steps"] or 0
            for edit in report["edits"]
            for layer in edit["layers"]
            for token in layer["tokens"]
        ]
        assert counted["late"].gradient_steps == sum(steps), spec
