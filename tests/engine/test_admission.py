"""Every bad spec is a ValueError naming the field, what it got and what is allowed; nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ksteer_vllm import SteeringSpec
from testbed.compare import exact
from tests.support.engines import generate, generate_one, sampling, token_prompt, worker

GOOD: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 1.0}

# name -> (spec, words the message must contain): the field, what it got, what is allowed
BAD: dict[str, tuple[Any, list[str]]] = {
    "unknown probe": ({**GOOD, "probe": "toons"}, ["ksteer.probe", "'toons'", "tones, moods"]),
    "no probe": ({"target": ["warm"], "alpha": 1}, ["ksteer.probe", "required"]),
    "unknown label": ({**GOOD, "target": ["hot"]}, ["ksteer.target", "'hot'", "warm, cold, dry"]),
    "label of another probe": ({**GOOD, "avoid": ["sad"]}, ["ksteer.avoid", "'sad'", "warm, cold, dry"]),
    "unknown field": ({**GOOD, "force": 3}, ["ksteer.force", "unknown field", "alpha, strength, num_steps"]),
    "unknown field of where": ({**GOOD, "where": {"reply": [0, 1]}}, ["ksteer.where.reply", "prompt, gener"]),
    "layer beyond": ({**GOOD, "layers": [4]}, ["ksteer.layers", "layer 4", "0, 1, 2, 3"]),
    "negative layer": ({**GOOD, "layers": [-1]}, ["ksteer.layers", "greater than or equal to 0", "-1"]),
    "no layers": ({**GOOD, "layers": []}, ["ksteer.layers", "empty"]),
    "layer twice": ({**GOOD, "layers": [1, 1]}, ["ksteer.layers", "twice"]),
    "layer as text": ({**GOOD, "layers": ["1"]}, ["ksteer.layers", "integer", "'1'"]),
    "alpha as text": ({**GOOD, "alpha": "1"}, ["ksteer.alpha", "number", "'1'"]),
    "alpha true": ({**GOOD, "alpha": True}, ["ksteer.alpha", "number", "True"]),
    "alpha not a number": ({**GOOD, "alpha": float("nan")}, ["ksteer.alpha", "finite", "nan"]),
    "alpha infinite": ({**GOOD, "alpha": float("-inf")}, ["ksteer.alpha", "finite", "-inf"]),
    "alpha beyond float": (json.dumps({**GOOD, "alpha": 10**400}), ["ksteer.alpha", "finite"]),
    "alpha absent": ({"probe": "tones", "target": ["warm"]}, ["ksteer.alpha", "required", "default_alpha"]),
    "no steps": ({**GOOD, "num_steps": 0}, ["ksteer.num_steps", "greater than or equal to 1", "0"]),
    "too many steps": ({**GOOD, "num_steps": 257}, ["ksteer.num_steps", "256", "257"]),
    "very many steps": (json.dumps({**GOOD, "num_steps": 10**30}), ["ksteer.num_steps", "256"]),
    "fractional steps": ({**GOOD, "num_steps": 1.5}, ["ksteer.num_steps", "integer", "1.5"]),
    "decay above 1": ({**GOOD, "step_decay": 1.1}, ["ksteer.step_decay", "less than or equal to 1", "1.1"]),
    "decay negative": ({**GOOD, "step_decay": -0.1}, ["ksteer.step_decay", "-0.1"]),
    "unknown method": ({**GOOD, "method": "sae"}, ["ksteer.method", "gradient", "'sae'"]),
    "nothing to do": ({"probe": "tones", "alpha": 1}, ["ksteer.target", "both empty"]),
    "empty lists": ({**GOOD, "target": [], "avoid": []}, ["ksteer.target", "both empty"]),
    "label on both sides": ({**GOOD, "avoid": ["warm"]}, ["ksteer.target", "both sides", "warm"]),
    "label twice": ({**GOOD, "target": ["warm", "warm"]}, ["ksteer.target", "twice", "warm"]),
    "weight zero": ({**GOOD, "target": {"warm": 0}}, ["ksteer.target", "'warm'", "> 0", "0"]),
    "weight negative": ({**GOOD, "target": {"warm": -1}}, ["ksteer.target", "> 0", "-1"]),
    "weight infinite": ({**GOOD, "target": {"warm": float("inf")}}, ["ksteer.target", "finite", "inf"]),
    "weight as text": ({**GOOD, "target": {"warm": "1"}}, ["ksteer.target", "number", "str"]),
    "target as text": ({**GOOD, "target": "warm"}, ["ksteer.target", "list of label names"]),
    "reflect with alpha": (
        {"probe": "tones", "avoid": ["warm"], "method": "reflect", "alpha": 1},
        ["ksteer.alpha", "not used by method 'reflect'"],
    ),
    "reflect with target": (
        {"probe": "tones", "target": ["cold"], "avoid": ["warm"], "method": "reflect"},
        ["ksteer.target", "'reflect'", "avoid only"],
    ),
    "project with steps": (
        {"probe": "tones", "avoid": ["warm"], "method": "project", "num_steps": 9},
        ["ksteer.num_steps", "not used by method 'project'"],
    ),
    "project with decay": (
        {"probe": "tones", "avoid": ["warm"], "method": "project", "step_decay": 0.5},
        ["ksteer.step_decay", "not used by method 'project'"],
    ),
    "reflect without avoid": ({"probe": "tones", "method": "reflect"}, ["ksteer.avoid", "'reflect'"]),
    "add with steps": ({**GOOD, "method": "add", "num_steps": 2}, ["ksteer.num_steps", "'add'"]),
    "where unknown": ({**GOOD, "where": "reply"}, ["ksteer.where", "prompt, generation, both", "'reply'"]),
    "where empty": ({**GOOD, "where": {}}, ["ksteer.where", "selects nothing"]),
    "window empty": ({**GOOD, "where": {"prompt": [3, 3]}}, ["ksteer.where.prompt", "[3, 3)", "empty"]),
    "window backwards": ({**GOOD, "where": {"generation": [3, 2]}}, ["ksteer.where.generation", "[3, 2)"]),
    "window negative": ({**GOOD, "where": {"prompt": [-2, 3]}}, ["ksteer.where.prompt", "0 or later", "-2"]),
    "window of three": ({**GOOD, "where": {"prompt": [1, 2, 3]}}, ["ksteer.where.prompt", "[start, end]"]),
    "window beyond the prompt": (
        {**GOOD, "where": {"prompt": [10, None]}},
        ["ksteer.where.prompt", "selects nothing", "10 tokens"],
    ),
    "window beyond max_tokens": (
        {**GOOD, "where": {"generation": [12, 14]}},
        ["ksteer.where.generation", "selects nothing", "max_tokens is 12"],
    ),
    "window far beyond": (
        json.dumps({**GOOD, "where": {"generation": [2**80, None]}}),
        ["ksteer.where.generation", "selects nothing"],
    ),
    "method of another family": (
        {**GOOD, "method": "ace"},
        ["ksteer.method", "'tones' (mlp) has: gradient, reflect, project, add, random", "'ace'"],
    ),
    "unknown loss": ({**GOOD, "loss": "min"}, ["ksteer.loss", 'mean, softmin or {"hinge": p}', "'min'"]),
    "hinge beyond": ({**GOOD, "loss": {"hinge": 1.5}}, ["ksteer.loss.hinge", "less than 1", "1.5"]),
    "until certain": ({**GOOD, "until": {"target": 1}}, ["ksteer.until.target", "less than 1", "got 1"]),
    "until without a label": ({**GOOD, "until": {"avoid": 0.2}}, ["ksteer.until.avoid", "no avoid label"]),
    "unknown unit": ({**GOOD, "unit": "std"}, ["ksteer.unit", "'raw' or 'normalised'", "'std'"]),
    "unit without a scale": (
        {**GOOD, "unit": "normalised"},
        ["ksteer.unit", "'tones' stores no activation scale for layer 1", "it has: none"],
    ),
    "cap of nothing": ({**GOOD, "cap": 0}, ["ksteer.cap", "greater than 0", "got 0"]),
    "cap and norm": ({**GOOD, "cap": 0.1, "preserve_norm": True}, ["ksteer.preserve_norm", "with cap"]),
    "norm as a number": ({**GOOD, "preserve_norm": 1}, ["ksteer.preserve_norm", "boolean", "1"]),
    "fade of nothing": ({**GOOD, "fade": 0}, ["ksteer.fade", "greater than or equal to 1", "got 0"]),
    "values of a probe": (
        {"probe": "tones", "values": {"warm": 1}},
        ["ksteer.values", "not used by method 'gradient'", "target, avoid only"],
    ),
    "condition of nobody": (
        {**GOOD, "condition": {"probe": "gate", "label": "warm", "above": 0.5}},
        ["ksteer.condition.probe", "'gate'", "tones, moods"],
    ),
    "condition on another label": (
        {**GOOD, "condition": {"probe": "moods", "label": "warm", "above": 0.5}},
        ["ksteer.condition.label", "'warm'", "'moods' has: glad, sad"],
    ),
    "condition that is certain": (
        {**GOOD, "condition": {"probe": "moods", "label": "sad", "above": 1}},
        ["ksteer.condition.above", "between 0 and 1", "1.0"],
    ),
    "condition both ways": (
        {**GOOD, "condition": {"probe": "moods", "label": "sad", "above": 0.2, "below": 0.8}},
        ["ksteer.condition", "either above or below"],
    ),
    "empty stack": ({"stack": []}, ["ksteer.stack", "1 to 1024 edits", "0"]),
    "stack beside an edit": ({**GOOD, "stack": [GOOD]}, ["ksteer.probe", "not allowed beside stack"]),
    "deep in a stack": (
        {"stack": [GOOD, {**GOOD, "until": {"target": "high"}}]},
        ["ksteer.stack.1.until.target", "number", "'high'"],
    ),
    "label in a stack": (
        {"stack": [GOOD, {**GOOD, "target": ["hot"]}]},
        ["ksteer.stack.1.target.hot", "'hot'", "warm, cold, dry"],
    ),
    "stack of three": (
        {"stack": [GOOD, GOOD, GOOD]},
        ["ksteer.stack", "needs 3 edits in a row", "max_stages=2"],
    ),
    "window of a stack beyond": (
        {"stack": [GOOD, {**GOOD, "where": {"generation": [12, None]}}]},
        ["ksteer.stack.1.where.generation", "max_tokens is 12"],
    ),
    "report as text": ({**GOOD, "report": "yes"}, ["ksteer.report", "boolean", "'yes'"]),
    "not an object": (3, ["ksteer", "expected an object", "int"]),
    "a list": ([GOOD], ["ksteer", "expected an object", "list"]),
    "broken JSON": ("{", ["ksteer", "not valid JSON"]),
    "JSON of a list": ("[1]", ["ksteer", "expected an object", "list"]),
    "true": (True, ["ksteer", "expected an object", "bool"]),
}


@pytest.fixture(scope="module")
def served(engine: Any) -> Callable[[list[int]], Any]:
    """Proof that the engine still serves: prompt -> plain output from an empty cache."""

    def run(prompt: list[int]) -> Any:
        assert not engine.llm_engine.has_unfinished_requests()
        engine.reset_prefix_cache()
        return exact(generate_one(engine, prompt))

    return run


@pytest.mark.parametrize(("spec", "words"), BAD.values(), ids=BAD)
def test_a_bad_spec_is_refused_by_name_and_the_engine_goes_on(
    engine: Any,
    served: Callable[[list[int]], Any],
    prompts: Callable[..., list[list[int]]],
    spec: Any,
    words: list[str],
) -> None:
    asked = prompts(3, 10)
    before = served(asked[0])
    with pytest.raises(ValueError, match="ksteer") as refusal:
        generate(engine, asked, [None, spec, GOOD])
    missing = [word for word in words if word not in str(refusal.value)]
    assert not missing, f"{missing} not in: {refusal.value}"
    assert served(asked[0]) == before


def test_other_requests_of_the_engine_are_untouched_by_a_refusal(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """Requests already running go on to the same end while a bad one is refused."""
    prompt = prompts(1, 10, seed=1)[0]
    engine.reset_prefix_cache()
    alone = generate_one(engine, prompt, GOOD)
    engine.reset_prefix_cache()
    low_level = engine.llm_engine
    low_level.add_request("900", token_prompt(prompt), sampling(GOOD))
    low_level.step()
    for index, (spec, _) in enumerate(BAD.values()):
        with pytest.raises(ValueError, match="ksteer"):
            low_level.add_request(f"bad-{index}", token_prompt(prompt), sampling(spec))
    finished = []
    while low_level.has_unfinished_requests():
        finished += [output for output in low_level.step() if output.finished]
    assert [exact(output) for output in finished] == [exact(alone)]


def test_validation_happens_before_the_worker_sees_anything(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    counters = worker(engine).ksteer_state.counters
    before = counters.snapshot()["requests"]
    for spec, _ in BAD.values():
        with pytest.raises(ValueError, match="ksteer"):
            generate_one(engine, prompts(1, 10)[0], spec)
    assert counters.snapshot()["requests"] == before


@pytest.mark.parametrize(
    "spec", [GOOD, SteeringSpec(**GOOD), '{"probe": "tones"}'], ids=["dict", "object", "JSON"]
)
@pytest.mark.parametrize("as_attribute", [False, True])
def test_beam_search_refuses_a_spec_in_every_spelling(
    engine: Any, plain_engine: Any, prompts: Callable[..., list[list[int]]], spec: Any, as_attribute: bool
) -> None:
    from vllm.sampling_params import BeamSearchParams

    params = BeamSearchParams(beam_width=2, max_tokens=3)
    if as_attribute:
        params.ksteer = spec
    else:
        params.extra_args = {"ksteer": spec}
    for llm in (engine, plain_engine):
        with pytest.raises(ValueError, match="not supported with beam search"):
            llm.beam_search([token_prompt(prompts(1, 10)[0])], params)


def test_beam_search_without_a_spec_still_runs(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    from vllm.sampling_params import BeamSearchParams

    output = engine.beam_search(
        [token_prompt(prompts(1, 10)[0])], BeamSearchParams(beam_width=2, max_tokens=3)
    )
    assert len(output[0].sequences) == 2


def test_pooling_parameters_with_a_spec_are_refused(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    from vllm import PoolingParams

    params = PoolingParams(extra_kwargs={"ksteer": GOOD})
    with pytest.raises(ValueError, match="PoolingParams would lose the spec"):
        engine.llm_engine.add_request("pooling", token_prompt(prompts(1, 10)[0]), params)


def test_reserved_keys_are_refused(
    engine: Any, plain_engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    record = {"edits": [{"fingerprint": "0" * 64, "windows": [0, 0, 9, 99]}], "report": False}
    capture = {"id": "x", "start": 0, "end": 4}
    for llm in (engine, plain_engine):
        for other in ({"ksteer_admission": record}, {"ksteer_admission": None}):
            with pytest.raises(ValueError, match="ksteer_admission is reserved for the engine"):
                generate_one(llm, prompts(1, 10)[0], other=other)
        with pytest.raises(ValueError, match="this engine does not capture"):
            generate_one(llm, prompts(1, 10)[0], other={"ksteer_capture": capture})
    with pytest.raises(ValueError, match="ksteer_admission is reserved for the engine"):
        generate_one(engine, prompts(1, 10)[0], GOOD, other={"ksteer_admission": record})


@pytest.mark.parametrize("enabled", [True, False])
def test_a_request_object_that_was_never_admitted_is_refused(
    engine: Any, plain_engine: Any, prompts: Callable[..., list[list[int]]], enabled: bool
) -> None:
    """vLLM still takes hand-made EngineCoreRequests, which no input processor has seen."""
    llm = engine if enabled else plain_engine
    tokens = {"type": "token", "prompt_token_ids": prompts(1, 10)[0]}
    process = llm.llm_engine.input_processor.process_inputs
    request = process("made", tokens, sampling(), supported_tasks=("generate",))
    request.sampling_params.extra_args = {"ksteer": GOOD}
    with pytest.raises(ValueError, match="was not admitted"):
        llm.llm_engine.add_request("made", request, sampling())
    assert not llm.llm_engine.has_unfinished_requests()
    if enabled:
        admitted = process("seen", tokens, sampling(GOOD), supported_tasks=("generate",))
        llm.llm_engine.add_request("seen", admitted, sampling(GOOD))
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
