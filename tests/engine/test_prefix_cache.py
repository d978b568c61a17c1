"""The prefix cache with steering: blocks are shared exactly where their contents are equal.

A hit is `num_cached_tokens` > 0, in whole blocks of 32 tokens. Outputs after hits are compared with an engine
that has no cache; tolerances as in `testbed.compare`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.compare import assert_all_same, assert_differ, assert_same, exact
from tests.support.engines import BLOCK_SIZE, counter, generate, generate_one, start_engine

GRADIENT: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 0.8, "num_steps": 3}
WHERES: dict[str, Any] = {
    "generation": "generation",
    "prompt": "prompt",
    "both": "both",
    "prompt window": {"prompt": [20, 40]},
    "generation window": {"generation": [3, 20]},
    "two windows": {"prompt": [0, 5], "generation": [0, 8]},
}


@pytest.fixture
def cached(engine: Any) -> Any:
    """The steered engine with an empty prefix cache."""
    assert engine.reset_prefix_cache()
    return engine


@pytest.fixture(scope="module")
def cold(llama: Path, probes: dict[str, Path]) -> Any:
    """The same engine without a prefix cache."""
    return start_engine(llama, probes, steering={"layers": "all"}, enable_prefix_caching=False)


@pytest.fixture
def prompt(prompts: Callable[..., list[list[int]]]) -> list[int]:
    """Two whole blocks and a bit: the second block ends before the last prompt token."""
    return prompts(1, 2 * BLOCK_SIZE + 6)[0]


@pytest.mark.parametrize("where", WHERES.values(), ids=WHERES)
def test_plain_after_steered_is_as_if_steering_had_never_happened(
    cached: Any, plain_engine: Any, prompt: list[int], where: Any
) -> None:
    plain_engine.reset_prefix_cache()
    expected = generate_one(plain_engine, prompt)
    steered = generate_one(cached, prompt, {**GRADIENT, "where": where})
    assert_differ(steered, expected)
    assert_same(generate_one(cached, prompt), expected)


@pytest.mark.parametrize("where", WHERES.values(), ids=WHERES)
def test_steered_after_plain_equals_a_cold_engine(
    cached: Any, cold: Any, prompt: list[int], where: Any
) -> None:
    spec = {**GRADIENT, "where": where}
    generate_one(cached, prompt)
    assert_same(generate_one(cached, prompt, spec), generate_one(cold, prompt, spec))


def test_generation_only_steering_hits_blocks_of_plain_requests_and_the_other_way_round(
    cached: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    first, second = prompts(2, 2 * BLOCK_SIZE + 6, seed=1)
    spec = {**GRADIENT, "where": "generation"}
    assert generate_one(cached, first).num_cached_tokens == 0
    assert generate_one(cached, first, spec).num_cached_tokens == 2 * BLOCK_SIZE
    assert generate_one(cached, second, spec).num_cached_tokens == 0
    assert generate_one(cached, second).num_cached_tokens == 2 * BLOCK_SIZE
    another = {"probe": "moods", "avoid": ["sad"], "method": "reflect", "layers": [0, 3]}
    assert generate_one(cached, second, another).num_cached_tokens == 2 * BLOCK_SIZE


def test_prompt_steering_hits_its_own_blocks_and_no_others(cached: Any, prompt: list[int]) -> None:
    spec = {**GRADIENT, "where": "prompt"}
    generate_one(cached, prompt)
    first = generate_one(cached, prompt, spec)
    assert first.num_cached_tokens == 0
    again = generate_one(cached, prompt, spec)
    assert again.num_cached_tokens == 2 * BLOCK_SIZE
    assert_same(first, again)


WHEN: dict[str, Any] = {"probe": "moods", "label": "glad", "above": 0.5}
MOODS: dict[str, Any] = {"probe": "moods", "target": ["sad"], "alpha": 0.6, "layers": [1, 2]}

# What depends on more than the token and the spec's labels; each steers the prompt and the reply.
KINDS: dict[str, dict[str, Any]] = {
    "fade": {**GRADIENT, "where": "both", "fade": 30},
    "condition": {**GRADIENT, "where": "both", "condition": WHEN},
    "stack": {"stack": [{**GRADIENT, "where": "both"}, {**MOODS, "where": "both"}]},
    "stack of two windows": {"stack": [{**GRADIENT, "where": "prompt"}, {**MOODS, "where": "generation"}]},
    "stack with a fade": {"stack": [{**GRADIENT, "where": "both"}, {**MOODS, "where": "both", "fade": 9}]},
    "cap": {**GRADIENT, "alpha": 3.0, "where": "both", "cap": 0.2},
    "until": {**GRADIENT, "where": "both", "num_steps": 9, "until": {"target": 0.9}},
    "norm": {**GRADIENT, "where": "both", "preserve_norm": True},
}


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_every_kind_of_edit_equals_a_cold_engine_and_hits_itself(
    cached: Any, cold: Any, prompt: list[int], spec: dict[str, Any]
) -> None:
    expected = generate_one(cold, prompt, spec)
    plain = generate_one(cached, prompt)
    first = generate_one(cached, prompt, spec)
    assert first.num_cached_tokens == 0, "blocks of the plain request"
    assert_same(first, expected)
    assert_differ(first, plain)
    again = generate_one(cached, prompt, spec)
    assert again.num_cached_tokens == 2 * BLOCK_SIZE
    assert_same(again, expected)
    after = generate_one(cached, prompt)
    assert after.num_cached_tokens == 2 * BLOCK_SIZE
    assert_same(after, plain)


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_turn_two_of_every_kind_of_edit_equals_a_cold_engine(
    cached: Any, cold: Any, prompt: list[int], prompts: Callable[..., list[list[int]]], spec: dict[str, Any]
) -> None:
    reply = generate_one(cached, prompt, spec, max_tokens=2 * BLOCK_SIZE).outputs[0].token_ids
    turn_two = [*prompt, *reply, *prompts(1, 9, seed=5)[0]]
    second = generate_one(cached, turn_two, spec)
    assert_same(second, generate_one(cold, turn_two, spec))
    assert_same(generate_one(cached, turn_two), generate_one(cold, turn_two))


def test_a_faded_reply_is_not_the_prompt_of_turn_two(cached: Any, prompt: list[int]) -> None:
    """Of 70 prompt and 64 reply tokens: the prompt's blocks are steered at full strength in both turns; the
    reply's were written fading, and turn two reads them at full strength."""
    steady = {**GRADIENT, "where": "both"}
    for spec, shared in ((steady, 4), ({**steady, "fade": 30}, 2), ({**steady, "fade": 31}, 2)):
        assert cached.reset_prefix_cache()
        reply = generate_one(cached, prompt, spec, max_tokens=2 * BLOCK_SIZE).outputs[0].token_ids
        again = generate_one(cached, [*prompt, *reply, 7, 8, 9], spec)
        assert again.num_cached_tokens == shared * BLOCK_SIZE, spec


def test_an_equal_fading_request_hits_and_fades_alike(cached: Any, cold: Any, prompt: list[int]) -> None:
    """The same request again: its plain prompt blocks are hit, and the fade starts where it did."""
    spec = {"probe": "tones", "target": ["warm"], "alpha": 0.8, "where": "generation", "fade": 25}
    generate_one(cached, prompt, spec, max_tokens=2 * BLOCK_SIZE)
    again = generate_one(cached, prompt, spec, max_tokens=2 * BLOCK_SIZE)
    assert again.num_cached_tokens == 2 * BLOCK_SIZE
    assert_same(again, generate_one(cold, prompt, spec, max_tokens=2 * BLOCK_SIZE))


def _stack(*edits: dict[str, Any]) -> dict[str, Any]:
    return {"stack": [{"where": "prompt", **edit} for edit in edits]}


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "with and without a condition": (_stack(GRADIENT), _stack({**GRADIENT, "condition": WHEN})),
    "another threshold": (
        _stack({**GRADIENT, "condition": WHEN}),
        _stack({**GRADIENT, "condition": {**WHEN, "above": 0.6}}),
    ),
    "the other way round": (
        _stack({**GRADIENT, "condition": WHEN}),
        _stack({**GRADIENT, "condition": {"probe": "moods", "label": "glad", "below": 0.5}}),
    ),
    "another label": (
        _stack({**GRADIENT, "condition": WHEN}),
        _stack({**GRADIENT, "condition": {**WHEN, "label": "sad"}}),
    ),
    "another probe": (
        _stack({**GRADIENT, "condition": {**WHEN, "label": "sad"}}),
        _stack({**GRADIENT, "condition": {**WHEN, "probe": "tones", "label": "warm"}}),
    ),
    "one more edit": (_stack(GRADIENT), _stack(GRADIENT, MOODS)),
    "another order": (_stack(GRADIENT, {**MOODS, "layers": [1]}), _stack({**MOODS, "layers": [1]}, GRADIENT)),
    "the second edit": (_stack(GRADIENT, MOODS), _stack(GRADIENT, {**MOODS, "alpha": 0.61})),
    "twice": (_stack(GRADIENT), _stack(GRADIENT, GRADIENT)),
    "a loss": (_stack(GRADIENT), _stack({**GRADIENT, "loss": "softmin"})),
    "a hinge": (_stack({**GRADIENT, "loss": {"hinge": 0.9}}), _stack({**GRADIENT, "loss": {"hinge": 0.8}})),
    "until": (_stack({**GRADIENT, "until": {"target": 0.9}}), _stack({**GRADIENT, "until": {"target": 0.8}})),
    "a cap": (_stack({**GRADIENT, "cap": 0.5}), _stack({**GRADIENT, "cap": 0.4})),
    "the norm": (_stack(GRADIENT), _stack({**GRADIENT, "preserve_norm": True})),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_requests_that_differ_in_any_option_share_no_prompt_block(
    cached: Any, prompt: list[int], one: dict[str, Any], other: dict[str, Any]
) -> None:
    hits = [
        generate_one(cached, prompt, spec, max_tokens=1).num_cached_tokens
        for spec in (one, other, one, other)
    ]
    assert hits == [0, 0, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE]


def test_edits_that_do_not_steer_a_block_do_not_key_it(cached: Any, cold: Any, prompt: list[int]) -> None:
    """The second edit steers the reply: prompt blocks are those of the first edit alone."""
    first, reply = {**GRADIENT, "where": "prompt"}, {**MOODS, "where": "generation", "fade": 4}
    generate_one(cached, prompt, first)
    for spec in (
        {"stack": [first, reply]},
        {"stack": [reply, first]},
        {"stack": [first]},
        {**first, "report": False},
    ):
        output = generate_one(cached, prompt, spec)
        assert output.num_cached_tokens == 2 * BLOCK_SIZE, spec
        assert_same(output, generate_one(cold, prompt, spec), str(spec))


OTHERS: dict[str, dict[str, Any]] = {
    "alpha": {"alpha": 0.7},
    "steps": {"num_steps": 4},
    "decay": {"step_decay": 0.9},
    "labels": {"target": ["cold"]},
    "weights": {"target": {"warm": 1, "cold": 2}},
    "avoid": {"avoid": ["dry"]},
    "method": {"method": "add", "num_steps": None},
    "layers": {"layers": [0, 1]},
    "probe": {"probe": "moods", "target": ["glad"], "layers": [1]},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_specs_that_do_something_else_share_no_prompt_block(
    cached: Any, prompt: list[int], change: dict[str, Any]
) -> None:
    spec = {**GRADIENT, "where": "prompt"}
    other = {key: value for key, value in {**spec, **change}.items() if value is not None}
    generate_one(cached, prompt, spec)
    assert generate_one(cached, prompt, other).num_cached_tokens == 0
    assert generate_one(cached, prompt, spec).num_cached_tokens == 2 * BLOCK_SIZE


def test_specs_that_do_the_same_share_blocks_where_their_windows_agree(
    cached: Any, cold: Any, prompt: list[int]
) -> None:
    """Blocks [0, 32) and [32, 64): a window key is about the offsets inside one block."""
    generate_one(cached, prompt, {**GRADIENT, "where": "prompt"})
    for where, shared in (
        ("both", 2 * BLOCK_SIZE),
        ({"prompt": [0, 64]}, 2 * BLOCK_SIZE),
        ({"prompt": [0, 32]}, BLOCK_SIZE),
        ({"prompt": [0, 40]}, BLOCK_SIZE),
        ({"prompt": [1, None]}, 0),
        ({"prompt": [32, None]}, 0),
        ("generation", BLOCK_SIZE),  # the plain first block of the line above
    ):
        spec = {**GRADIENT, "where": where}
        output = generate_one(cached, prompt, spec)
        assert output.num_cached_tokens == shared, where
        assert_same(output, generate_one(cold, prompt, spec), str(where))


def test_equal_specs_written_differently_share_blocks(cached: Any, prompt: list[int]) -> None:
    generate_one(cached, prompt, {**GRADIENT, "target": {"warm": 2.0, "cold": 2.0}, "where": "prompt"})
    same = {**GRADIENT, "target": ["cold", "warm"], "layers": [1], "step_decay": 1, "where": "both"}
    assert generate_one(cached, prompt, same).num_cached_tokens == 2 * BLOCK_SIZE


@pytest.mark.parametrize("where", WHERES.values(), ids=WHERES)
def test_turn_two_of_a_chat_equals_a_cold_engine(
    cached: Any, cold: Any, prompt: list[int], prompts: Callable[..., list[list[int]]], where: Any
) -> None:
    """The reply of turn one, steered by the generation window, is prompt in turn two."""
    spec = {**GRADIENT, "where": where}
    reply = generate_one(cached, prompt, spec, max_tokens=2 * BLOCK_SIZE).outputs[0].token_ids
    turn_two = [*prompt, *reply, *prompts(1, 9, seed=2)[0]]
    second = generate_one(cached, turn_two, spec)
    assert_same(second, generate_one(cold, turn_two, spec), f"turn two, {where}")
    assert_differ(second, generate_one(cold, turn_two), f"turn two, {where}")
    plain = generate_one(cached, turn_two)
    assert_same(plain, generate_one(cold, turn_two), f"plain turn two after {where}")


def test_turn_two_reuses_what_is_equal(cached: Any, prompt: list[int]) -> None:
    """Of 68 prompt and 64 reply tokens: generation-only steering reuses the prompt's plain blocks, `both`
    everything, since the reply is steered in either role."""
    for where, shared in (("generation", 2 * BLOCK_SIZE), ("both", 4 * BLOCK_SIZE)):
        assert cached.reset_prefix_cache()
        spec = {**GRADIENT, "where": where}
        reply = generate_one(cached, prompt, spec, max_tokens=2 * BLOCK_SIZE).outputs[0].token_ids
        second = generate_one(cached, [*prompt, *reply, 7, 8, 9], spec)
        assert second.num_cached_tokens == shared, where


def test_turn_two_after_preemption_equals_a_cold_engine(
    llama: Path, probes: dict[str, Path], cold: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """Recomputed blocks are keyed like the blocks they replace."""
    llm = start_engine(
        llama, probes, steering={"layers": "all"}, num_gpu_blocks_override=15, max_model_len=192
    )
    asked = prompts(len(WHERES), 40, seed=3)
    specs = [{**GRADIENT, "where": where} for where in WHERES.values()]
    before = counter(llm, "vllm:num_preemptions")
    first = generate(llm, asked, specs, max_tokens=60)
    assert counter(llm, "vllm:num_preemptions") > before, "nothing was preempted"
    again = [
        generate_one(cold, prompt, spec, max_tokens=60) for prompt, spec in zip(asked, specs, strict=True)
    ]
    assert_all_same(first, again, "turn one, preempted")
    for prompt, output, spec in zip(asked, first, specs, strict=True):
        turn_two = [*prompt, *output.outputs[0].token_ids, 9, 8, 7]
        assert_same(generate_one(llm, turn_two, spec), generate_one(cold, turn_two, spec), str(spec))
        assert_same(generate_one(llm, turn_two), generate_one(cold, turn_two), f"plain after {spec}")


def test_cache_salt_still_separates(cached: Any, prompt: list[int]) -> None:
    """vLLM's own extra keys stay beside ours."""
    from tests.support.engines import sampling, token_prompt

    spec = {**GRADIENT, "where": "prompt"}

    def hits(salt: str) -> int:
        output = cached.generate([token_prompt(prompt, cache_salt=salt)], sampling(spec), use_tqdm=False)
        return output[0].num_cached_tokens

    assert [hits("a"), hits("b"), hits("a"), hits("b")] == [0, 0, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE]


def test_cached_and_computed_prompts_give_the_same_bits_to_a_plain_request(
    cached: Any, prompt: list[int]
) -> None:
    first = generate_one(cached, prompt)
    generate_one(cached, prompt, {**GRADIENT, "where": "both"})
    again = generate_one(cached, prompt)
    assert again.num_cached_tokens == 2 * BLOCK_SIZE
    assert_same(first, again)
    assert exact(generate_one(cached, prompt)) == exact(again)
