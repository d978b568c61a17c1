"""Requests with different specs, and with none, in one batch: each as if it ran alone.

Between batch compositions vLLM itself sums in another order, so: float32, log-probabilities within 1e-3,
a differing greedy token only at a near-tie (see `testbed.compare`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.compare import VISIBLE, assert_all_same, assert_differ, exact, largest_difference
from tests.support.engines import generate, generate_one, start_engine

NUM_STEERED = 64


def random_spec(source: random.Random) -> dict[str, Any]:
    """A spec of any method, strength, mix of labels, layers and windows."""
    labels = ["warm", "cold", "dry"]
    source.shuffle(labels)
    method = source.choice(["gradient", "gradient", "gradient", "reflect", "project", "add"])
    spec: dict[str, Any] = {"probe": "tones", "method": method}
    cut = source.randint(0, 2)
    if method in ("reflect", "project"):
        spec["avoid"] = {label: source.uniform(0.1, 2) for label in labels[: cut + 1]}
    else:
        spec["target"] = {label: source.uniform(0.1, 2) for label in labels[: cut + 1]}
        spec["avoid"] = labels[cut + 1 :]
        spec["alpha"] = source.choice([-1, 1]) * source.uniform(0.3, 1.0)
    if method == "gradient":
        spec["num_steps"] = source.randint(1, 4)
        spec["step_decay"] = source.choice([1, 0.5])
    if source.random() < 0.5:
        spec["layers"] = sorted(source.sample(range(4), source.randint(1, 3)))
    spec["where"] = source.choice(
        [
            "generation",
            "prompt",
            "both",
            {"prompt": [3, 9]},
            {"generation": [0, 4]},
            {"prompt": [1, 4], "generation": [2, None]},
        ]
    )
    return spec


@pytest.fixture(scope="module")
def large_engine(llama: Path, probes: dict[str, Path]) -> Any:
    """Room for every request of this module at once; no prefix cache, so every run computes everything."""
    return start_engine(
        llama,
        probes,
        steering={"layers": "all"},
        max_num_seqs=2 * NUM_STEERED,
        max_num_batched_tokens=4096,
        max_model_len=64,
        enable_prefix_caching=False,
    )


def test_64_different_specs_and_plain_requests_in_one_batch_equal_each_alone(
    large_engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    source = random.Random(7)
    specs: list[Any] = []
    for _ in range(NUM_STEERED):
        specs += [random_spec(source), *([None] if source.random() < 0.3 else [])]
    asked = [prompt[: source.randint(10, 17)] for prompt in prompts(len(specs), 17)]
    together = generate(large_engine, asked, specs, max_tokens=8)
    alone = [generate_one(large_engine, p, spec, max_tokens=8) for p, spec in zip(asked, specs, strict=True)]
    assert len({repr(spec) for spec in specs if spec}) == NUM_STEERED
    assert_all_same(together, alone, "64 specs in one batch and each alone")


def test_every_spec_of_the_batch_test_steers_visibly(
    large_engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """Otherwise the test above could pass with steering lost or mixed up between rows."""
    source = random.Random(7)
    specs = [random_spec(source) for _ in range(NUM_STEERED)]
    prompt = prompts(1, 16)[0]
    plain = generate_one(large_engine, prompt, max_tokens=8)
    steered = generate(large_engine, [prompt] * NUM_STEERED, specs, max_tokens=8)
    visible = [largest_difference(output, plain)[0] > VISIBLE for output in steered]
    assert sum(visible) >= 0.9 * NUM_STEERED


def test_plain_requests_of_a_steered_batch_equal_a_plain_engine_bit_for_bit(
    llama: Path, probes: dict[str, Path], prompts: Callable[..., list[list[int]]]
) -> None:
    """Same requests, same schedule: rows of -1 keep the very bits of hidden_states."""
    asked = prompts(8, 16)
    spec = {"probe": "tones", "target": ["warm"], "alpha": 1.0, "where": "both", "layers": [0, 1, 2, 3]}
    steered = generate(start_engine(llama, probes, steering={"layers": "all"}), asked, [None, spec] * 4)
    plain = generate(start_engine(llama), asked, [None] * 8)
    for index in range(0, 8, 2):
        assert exact(steered[index]) == exact(plain[index])
        assert_differ(steered[index + 1], plain[index + 1])


def test_rows_are_free_again_after_their_requests(
    engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """More steered requests than rows, in waves; a plain one afterwards is plain."""
    prompt = prompts(1, 16, seed=5)[0]
    before = generate_one(engine, prompt)
    spec = {"probe": "tones", "target": ["warm"], "alpha": 1.0, "where": "both"}
    waves = generate(engine, prompts(50, 16, seed=6), [spec] * 50, max_tokens=3)
    assert len(waves) == 50
    engine.reset_prefix_cache()
    assert exact(generate_one(engine, prompt)) == exact(before)


def test_alpha_zero_is_exactly_a_no_op(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    prompt = prompts(1, 16, seed=8)[0]
    plain = generate_one(engine, prompt)
    engine.reset_prefix_cache()
    spec = {"probe": "tones", "target": ["warm"], "alpha": 0, "where": "both", "layers": [0, 1, 2, 3]}
    assert exact(generate_one(engine, prompt, spec)) == exact(plain)


def test_two_engines_in_one_process_keep_their_own_probes(
    llama: Path, probes: dict[str, Path], engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    prompt = prompts(1, 16, seed=9)[0]
    spec = {"probe": "tones", "target": ["warm"], "alpha": 1.0}
    expected = generate_one(engine, prompt, spec)
    other = start_engine(llama, {"moods": probes["moods"]})
    with pytest.raises(ValueError, match="no probe named 'tones'; loaded: moods"):
        generate_one(other, prompt, spec)
    moods = {"probe": "moods", "target": ["glad"], "alpha": 1.0}
    assert_differ(generate_one(other, prompt, moods), generate_one(other, prompt))
    assert_all_same([generate_one(engine, prompt, spec)], [expected])
