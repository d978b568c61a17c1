"""How a spec reaches the engine offline, and that the caller's objects stay as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ksteer_vllm import SteeringSpec
from testbed.compare import assert_differ, exact
from tests.support.engines import GREEDY, generate_one, sampling, token_prompt

FIELDS: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 0.9, "where": "both"}


def test_every_spelling_of_a_spec_steers_alike(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    prompt = prompts(1, 16)[0]
    spec = SteeringSpec(**FIELDS)
    plain = generate_one(engine, prompt)
    spellings = [spec, FIELDS, spec.extra_args()["ksteer"], spec.canonical(), spec.model_dump_json()]
    spellings += [{"stack": [FIELDS]}, SteeringSpec(stack=[FIELDS])]
    outputs = []
    for spelling in spellings:
        engine.reset_prefix_cache()
        outputs.append(generate_one(engine, prompt, spelling))
    assert_differ(outputs[0], plain)
    assert all(exact(output) == exact(outputs[0]) for output in outputs)


def test_the_callers_parameters_are_unchanged_afterwards(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    spec = SteeringSpec(**FIELDS)
    for value in (spec, dict(FIELDS), spec.model_dump_json()):
        params = sampling(value, other={"other": {"nested": [1, 2]}})
        extra, before = params.extra_args, copy.deepcopy(params.extra_args)
        for skip_clone in (False, True):  # HTTP requests let vLLM take the object itself
            params.skip_clone = skip_clone
            engine.generate([token_prompt(prompts(1, 16)[0])], params, use_tqdm=False)
            assert params.extra_args is extra or skip_clone
            assert extra == before
            assert extra["ksteer"] is value


def test_parameters_are_reusable(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    params = sampling(SteeringSpec(**FIELDS))
    prompt = token_prompt(prompts(1, 16, seed=1)[0])
    first = engine.generate([prompt], params, use_tqdm=False)[0]
    engine.reset_prefix_cache()
    second = engine.generate([prompt], params, use_tqdm=False)[0]
    assert exact(first) == exact(second)


def test_other_extra_args_reach_the_engine_beside_the_spec(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    spec = SteeringSpec(**FIELDS)
    from vllm import SamplingParams

    params = SamplingParams(**GREEDY, extra_args=spec.extra_args({"theirs": 5}))
    request = engine.llm_engine.input_processor.process_inputs(
        "extra",
        {"type": "token", "prompt_token_ids": prompts(1, 16)[0]},
        params,
        supported_tasks=("generate",),
    )
    extra = request.sampling_params.extra_args
    assert extra["theirs"] == 5
    assert set(extra) == {"theirs", "ksteer_admission"}
    assert set(extra["ksteer_admission"]) == {"edits", "report", "sampled"}
    (edit,) = extra["ksteer_admission"]["edits"]
    assert set(edit) == {"edit", "fingerprint", "digest", "windows"}
    assert edit["edit"]["layers"] == [1]
    assert params.extra_args == spec.extra_args({"theirs": 5})


def test_an_explicit_none_is_no_spec(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    prompt = prompts(1, 16, seed=2)[0]
    from vllm import SamplingParams

    plain = generate_one(engine, prompt)
    engine.reset_prefix_cache()
    params = SamplingParams(**GREEDY, extra_args={"ksteer": None})
    output = engine.generate([token_prompt(prompt)], params, use_tqdm=False)[0]
    assert exact(output) == exact(plain)
