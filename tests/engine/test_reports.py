"""Steering reports of a running engine: what they say is what transformers with hooks computes, and however
the request was scheduled each accepted token has one record.

Tolerance 1e-3 on probabilities and relative shifts: engine and oracle differ by about 1e-5 in float32; the
record of another token differs by more than 1e-2, which is checked of two completions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import ksteer_vllm
from ksteer_vllm import Probe, SteeringSpec
from ksteer_vllm.report import report
from ksteer_vllm.verify.oracle import steered_positions
from tests.support.engines import (
    OPTIONS,
    async_scheduling,
    counter,
    generate,
    generate_one,
    sampling,
    start_engine,
    token_prompt,
    wants_v2_runner,
    worker,
)
from tests.support.models import NUM_LAYERS
from tests.support.oracle import Oracle

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


@pytest.mark.slow
@pytest.mark.skipif(wants_v2_runner(), reason="V2's sampling of drafts does not run in Triton's interpreter")
def test_rejected_drafts_are_not_reported(
    llama: Path,
    probes: dict[str, Path],
    engine: Any,
    vllm_environment: Callable[..., None],
    prompts: Callable[..., list[list[int]]],
) -> None:
    """In a process of its own: drafting imports numba, after which vLLM 0.32 starts no other engine there."""
    asked = [prompt[:7] * 5 for prompt in prompts(len(CASES), 7, seed=6)]
    specs = list(CASES.values())
    expected = [
        generate_one(engine, prompt, wanting(spec), max_tokens=30)
        for prompt, spec in zip(asked, specs, strict=True)
    ]
    vllm_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1")
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    llm = start_engine(llama, probes, steering={"layers": "all"}, speculative_config=ngram)
    try:
        outputs = generate(llm, asked, [wanting(spec) for spec in specs], max_tokens=30)
        drafted = counter(llm, "vllm:spec_decode_num_draft_tokens")
        accepted = counter(llm, "vllm:spec_decode_num_accepted_tokens")
        assert drafted > accepted > 0, "nothing was rejected, or nothing accepted"
        for spec, output, alone in zip(specs, outputs, expected, strict=True):
            check_same(check_positions(output, spec), check_positions(alone, spec))
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(wants_v2_runner(), reason="what lets V2 start on a CPU is in this process only")
def test_async_llm(
    llama: Path, probes: dict[str, Path], engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """Every kind of output, slow readers, several completions, clients that leave."""
    asked = prompts(len(CASES), 40, seed=11)
    expected = generate(engine, asked, [wanting(spec) for spec in CASES.values()])
    asyncio.run(_drive(llama, probes, asked, [report(output) for output in expected]))


async def _drive(
    llama: Path, probes: dict[str, Path], asked: Sequence[list[int]], expected: Sequence[Any]
) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    enabled = ksteer_vllm.enable(probes=probes, layers="all")
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(llama), **OPTIONS, additional_config=enabled))
    specs = list(CASES.values())

    async def ask(index: int, spec: Any, name: str, pause: float = 0, **changes: Any) -> list[Any]:
        """The reports, in order of completions; each comes with the last output of its completion."""
        reports: dict[int, Any] = {}
        params = sampling(spec, **changes)
        async for output in llm.generate(token_prompt(asked[index]), params, f"{name}-{index}"):
            for completion in output.outputs:
                found = report(completion)
                assert (found is not None) == (completion.finished() and spec is not WARM)
                if found is not None:
                    reports[completion.index] = found
            await asyncio.sleep(pause)
        return [reports[index] for index in sorted(reports)]

    async def leave(index: int, steps: int) -> None:
        stream: AsyncIterator[Any] = llm.generate(
            token_prompt(asked[index]), sampling(wanting(specs[index]), max_tokens=200), f"leave-{index}"
        )
        for _ in range(steps):
            await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    try:
        for kind in RequestOutputKind:
            running = [
                ask(i, wanting(spec), kind.name, pause, output_kind=kind)
                for pause in (0, 0.3)  # a slow reader gets outputs merged
                for i, spec in enumerate(specs)
            ]
            plain = ask(0, WARM, f"{kind.name}-plain", output_kind=kind)
            *answers, nothing = await asyncio.gather(*running, plain)
            assert nothing == []
            for index, found in enumerate(answers):
                check_same(*found, expected[index % len(specs)], kind.name)
            sampled = {"n": 3, "temperature": 1.0, "seed": 3, "output_kind": kind}
            several, *_ = await asyncio.gather(
                ask(1, wanting(specs[1]), f"{kind.name}-n", **sampled),
                ask(1, wanting(specs[1]), f"{kind.name}-n", 0.3, **sampled),
                *(leave(i, 2 + i) for i in range(3)),
            )
            first, *others = (layers_of(found)[0] for found in several)
            assert len(others) == 2
            for other in others:
                assert list(other) == list(first) == list(range(40 + 11))
                assert distance(other[20], first[20]) < TOLERANCE
                assert distance(other[50], first[50]) > VISIBLE
        desk = llm.output_processor.ksteer_desk
        await ask(0, wanting(specs[0]), "before")  # takes along what the slowest of those that left have left
        await leave(0, 3)
        assert len(desk._abandoned) == 1  # the next report takes it along
        await ask(0, wanting(specs[0]), "last")
        assert not desk._abandoned
        assert not desk._running
    finally:
        llm.shutdown()


def test_layers_of_a_stage_are_within_the_model() -> None:
    """The oracle reads the edited stream from the layer above, so no case may steer the last."""
    assert all(layer < NUM_LAYERS - 1 for spec in CASES.values() for layer in spec.get("layers", [2]))
