"""Steering reports of a running engine: what they say is what transformers with hooks computes, and however
the request was scheduled each accepted token has one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from ksteer_vllm import Probe, SteeringSpec
from ksteer_vllm.report import report
from testbed.models import NUM_LAYERS
from tests.engine.reports import (
    CASES,
    TOLERANCE,
    VISIBLE,
    WARM,
    check_positions,
    check_same,
    distance,
    expected_positions,
    layers_of,
    wanting,
)
from tests.support.engines import (
    async_scheduling,
    counter,
    generate,
    generate_one,
    sampling,
    start_engine,
    token_prompt,
    worker,
)
from tests.support.oracle import Oracle


@pytest.fixture(scope="module")
def oracle(llama: Path, probes: dict[str, Path], load_probes: Callable[..., Any]) -> Oracle:
    return Oracle(llama, load_probes(probes))


def expected_records(
    oracle: Oracle, probe: Probe, output: Any, spec: Mapping[str, Any], layer: int
) -> dict[int, dict[str, Any]]:
    """position -> record without part and index, from the stream before and after the oracle's edit."""
    seen: dict[str, torch.Tensor] = {}

    def before(module: Any, inputs: Any, result: Any) -> None:
        seen["before"] = (result[0] if isinstance(result, tuple) else result)[0].double().clone()

    def after(module: Any, inputs: Any, kwargs: Any) -> None:
        seen["after"] = (inputs[0] if inputs else kwargs["hidden_states"])[0].double()

    handles = [  # the oracle's own hooks are registered later, and so called between these two
        oracle.layers[layer].register_forward_hook(before),
        oracle.layers[layer + 1].register_forward_pre_hook(after, with_kwargs=True),
    ]
    tokens = output.outputs[0].token_ids
    parsed = SteeringSpec.parse(dict(spec))
    try:
        oracle.log_probs(output.prompt_token_ids, tokens, parsed)
    finally:
        for handle in handles:
            handle.remove()
    x, y = seen["before"], seen["after"]
    shift = (y - x).norm(dim=1) / x.norm(dim=1)
    old, new = (torch.sigmoid(probe.logits(v)) for v in (x, y))
    return {
        position: {
            "steps": spec.get("num_steps"),
            "shift": float(shift[position]),
            "before": dict(zip(probe.labels, old[position].tolist(), strict=True)),
            "after": dict(zip(probe.labels, new[position].tolist(), strict=True)),
        }
        for position in expected_positions(spec, len(output.prompt_token_ids), len(tokens))
    }


@pytest.mark.parametrize("name", CASES)
def test_a_report_says_what_transformers_computes(
    name: str,
    engine: Any,
    oracle: Oracle,
    probes: dict[str, Path],
    prompts: Callable[..., list[list[int]]],
) -> None:
    spec = CASES[name]
    output = generate_one(engine, prompts(1, 14, seed=1)[0], wanting(spec))
    found = check_positions(output, spec)
    (edit,) = found["edits"]
    assert edit["probe"] == spec["probe"]
    assert edit["method"] == spec.get("method", "gradient")
    probe = Probe.load(probes[spec["probe"]])
    shifts = []
    for entry in edit["layers"]:
        assert entry["labels"] == list(probe.labels)
        wanted = expected_records(oracle, probe, output, spec, entry["layer"])
        for record in entry["tokens"]:
            other = wanted[record["position"]]
            assert distance(record, other) < TOLERANCE, (entry["layer"], record, other)
            assert record["shift"] > VISIBLE
            shifts.append(record["shift"])
    assert found["mean_shift"] == pytest.approx(sum(shifts) / len(shifts), rel=1e-6)


def test_steering_moves_the_target_up(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    found = report(generate_one(engine, prompts(1, 14, seed=1)[0], wanting({**WARM, "where": "both"})))
    records = layers_of(found)[1].values()
    assert all(record["after"]["warm"] > record["before"]["warm"] for record in records)


def test_indices_are_those_of_where(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    asked = prompts(1, 14, seed=1)[0]
    for where, expected in (
        ("generation", [("generation", index) for index in range(12)]),
        ("prompt", [("prompt", index) for index in range(14)]),
        (
            {"prompt": [12, None], "generation": [0, 3]},
            [("prompt", 12), ("generation", 0), ("generation", 1), ("generation", 2)],
        ),
    ):
        found = report(generate_one(engine, asked, wanting({**WARM, "where": where})))
        assert [(r["part"], r["index"]) for r in layers_of(found)[1].values()] == expected


def test_only_who_asks_gets_one_and_asking_changes_nothing(
    engine: Any, plain_engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    asked = prompts(4, 20, seed=2)
    specs = [wanting(WARM), WARM, None, {**WARM, "report": False}]
    outputs = generate(engine, asked, specs)
    assert [report(output) is not None for output in outputs] == [True, False, False, False]
    again = generate(engine, asked, [WARM, wanting(WARM), None, wanting(WARM)])
    for left, right in zip(outputs, again, strict=True):
        assert list(left.outputs[0].token_ids) == list(right.outputs[0].token_ids)
    assert report(generate_one(plain_engine, asked[0])) is None


def test_a_batch_of_reports_equals_each_alone(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    asked = prompts(2 * len(CASES), 17, seed=3)
    specs = list(CASES.values()) * 2
    together = generate(engine, asked, [wanting(spec) for spec in specs])
    for prompt, spec, output in zip(asked, specs, together, strict=True):
        alone = generate_one(engine, prompt, wanting(spec))
        assert list(alone.outputs[0].token_ids) == list(output.outputs[0].token_ids)
        check_same(check_positions(output, spec), check_positions(alone, spec))


def test_a_prompt_met_before_is_reported_in_full(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """The prefix cache holds these very blocks, steered alike; a reporting request computes them again."""
    spec = {**WARM, "where": "both"}
    asked = prompts(1, 100, seed=4)[0]
    first = generate_one(engine, asked, wanting(spec))
    second = generate_one(engine, asked, wanting(spec))
    check_same(check_positions(second, spec), check_positions(first, spec))


def test_each_of_n_completions_has_its_own(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    spec = {**WARM, "where": "both"}
    output = generate(engine, prompts(1, 14, seed=5), [wanting(spec)], n=3, temperature=1.0, seed=1)[0]
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 3
    found = [layers_of(check_positions(output, spec, index))[1] for index in range(3)]
    assert distance(found[0][24], found[1][24]) > VISIBLE
    assert distance(found[0][5], found[1][5]) < TOLERANCE  # the prompt is the same
    with pytest.raises(ValueError, match="3: pass one of"):
        report(output)


def test_a_report_ends_with_the_completion(
    llama: Path, probes: dict[str, Path], prompts: Callable[..., list[list[int]]]
) -> None:
    """Scheduling ahead, the engine has run the model on the token that turns out to be the last."""
    with async_scheduling():
        llm = start_engine(llama, probes, steering={"layers": "all"})
    asked = prompts(1, 14, seed=6)[0]
    whole = generate_one(llm, asked, wanting(WARM)).outputs[0].token_ids
    for changes in ({"stop_token_ids": [whole[5]]}, {"stop": [f"w{whole[5]}"]}):
        stopped = generate_one(llm, asked, wanting(WARM), **changes)
        assert len(stopped.outputs[0].token_ids) <= 6
        check_positions(stopped, WARM)
    one = generate_one(llm, asked, wanting(WARM), max_tokens=1)
    assert list(layers_of(check_positions(one, WARM))[1]) == [13]


@pytest.mark.parametrize("scheduling", [nullcontext, async_scheduling])
def test_chunked_prefill_and_scheduling_ahead(
    llama: Path,
    probes: dict[str, Path],
    engine: Any,
    prompts: Callable[..., list[list[int]]],
    scheduling: Callable[[], Any],
) -> None:
    with scheduling():
        llm = start_engine(
            llama,
            probes,
            steering={"layers": "all"},
            max_num_batched_tokens=16,
            max_num_seqs=8,
            enable_chunked_prefill=True,
        )
    asked = prompts(len(CASES), 40, seed=7)
    outputs = generate(llm, asked, [wanting(spec) for spec in CASES.values()])
    for prompt, (name, spec), output in zip(asked, CASES.items(), outputs, strict=True):
        alone = generate_one(engine, prompt, wanting(spec))
        check_same(check_positions(output, spec), check_positions(alone, spec), name)


@pytest.mark.parametrize("scheduling", [nullcontext, async_scheduling])
def test_preempted_requests_are_not_counted_twice(
    llama: Path,
    probes: dict[str, Path],
    engine: Any,
    prompts: Callable[..., list[list[int]]],
    scheduling: Callable[[], Any],
) -> None:
    """Ten blocks for six requests of three blocks each: some are thrown out and computed again."""
    with scheduling():
        llm = start_engine(
            llama, probes, steering={"layers": "all"}, num_gpu_blocks_override=11, max_model_len=128
        )
    asked = prompts(len(CASES), 30, seed=8)
    before = counter(llm, "vllm:num_preemptions")
    outputs = generate(llm, asked, [wanting(spec) for spec in CASES.values()], max_tokens=40)
    assert counter(llm, "vllm:num_preemptions") > before, "nothing was preempted"
    for prompt, (name, spec), output in zip(asked, CASES.items(), outputs, strict=True):
        alone = generate_one(engine, prompt, wanting(spec), max_tokens=40)
        check_same(check_positions(output, spec), check_positions(alone, spec), name)


def test_aborted_requests_leave_no_records(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    """Their records go with the next report that is fetched, and nobody else's do."""
    asked = prompts(3, 20, seed=9)
    low_level = engine.llm_engine
    for index, prompt in enumerate(asked):
        low_level.add_request(f"abort-{index}", token_prompt(prompt), sampling(wanting(WARM)))
    for _ in range(4):
        low_level.step()
    low_level.abort_request(["abort-0", "abort-2"])
    outputs = []
    while low_level.has_unfinished_requests():
        outputs += low_level.step()
    (finished,) = [output for output in outputs if output.finished]
    assert finished.request_id == "abort-1"
    check_positions(finished, WARM)
    check_positions(generate_one(engine, asked[0], wanting(WARM)), WARM)
    store = worker(engine).ksteer_state.reports
    assert not store._running
    assert not store._ended


def test_several_finish_in_one_step_under_one_external_id(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """vLLM tells requests of the same id apart by ids of its own, and so do the reports."""
    asked = [prompts(1, length, seed=10)[0] for length in (12, 15)]
    for prompt in asked:
        engine.llm_engine.add_request("same", token_prompt(prompt), sampling(wanting(WARM)))
    finished = []
    while engine.llm_engine.has_unfinished_requests():
        finished += [output for output in engine.llm_engine.step() if output.finished]
    assert sorted(len(output.prompt_token_ids) for output in finished) == [12, 15]
    for output in finished:
        check_positions(output, WARM)


def test_layers_of_a_stage_are_within_the_model() -> None:
    """The oracle reads the edited stream from the layer above, so no case may steer the last."""
    assert all(layer < NUM_LAYERS - 1 for spec in CASES.values() for layer in spec.get("layers", [2]))
