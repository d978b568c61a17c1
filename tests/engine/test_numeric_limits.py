"""Reduced precision, and numbers as large as a request may ask for: no crash, no trace in other requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import Probe, SteeringSpec
from testbed.compare import TOLERANCE, VISIBLE, assert_same, exact
from testbed.families import write_probes
from tests.support.engines import generate, generate_one, start_engine
from tests.support.oracle import Oracle

BFLOAT16_TOLERANCE = 0.25
"""bfloat16 keeps 8 bits: over four layers the logits of a tiny model are off by up to 0.1, steered or not."""

HUGE: dict[str, dict[str, Any]] = {
    "gradient": {"target": ["warm"], "alpha": 1e12, "num_steps": 256},
    "gradient, backwards": {"target": ["warm"], "avoid": ["cold"], "alpha": -1e12, "num_steps": 256},
    "one step": {"avoid": ["dry"], "alpha": 1e12, "num_steps": 1},
    "add": {"target": ["warm"], "method": "add", "alpha": 1e12},
    "add, then reflect what is left": {"avoid": ["warm"], "method": "reflect"},
}


HUGE_METHODS: dict[str, dict[str, Any]] = {
    "ace": {"probe": "ace", "target": ["warm"], "avoid": ["cold"], "alpha": 1e12},
    "ablate": {"probe": "ace", "method": "ablate", "avoid": ["cold", "dry"], "alpha": -1e12},
    "loreft": {"probe": "loreft", "target": ["warm"], "alpha": 1e12},
    "loreft, backwards": {"probe": "loreft", "target": ["warm", "dry"], "alpha": -1e12},
    "lorest": {"probe": "lorest", "target": ["dry"], "alpha": 1e12},
    "clamp": {"probe": "sae", "method": "clamp", "values": {"warm": 1e12, "cold": -1e12}},
    "vectors": {"probe": "vectors", "target": ["warm"], "alpha": -1e12},
    "random": {"probe": "vectors", "method": "random", "target": ["warm"], "alpha": 1e12},
    "linear": {"probe": "linear", "target": ["warm"], "alpha": 1e12, "num_steps": 256},
    "normalised": {"probe": "mlp", "target": ["warm"], "alpha": 1e12, "num_steps": 256, "unit": "normalised"},
    "softmin": {"probe": "mlp", "target": ["warm"], "alpha": 1e12, "num_steps": 256, "loss": "softmin"},
    "hinge": {"probe": "mlp", "target": ["dry"], "alpha": -1e12, "num_steps": 256, "loss": {"hinge": 0.999}},
    "huge, the norm kept": {"probe": "ace", "target": ["warm"], "alpha": 1e12, "preserve_norm": True},
    "a huge cap": {"probe": "loreft", "target": ["warm"], "alpha": 1e12, "cap": 1e6},
    "stack": {"stack": [
        {"probe": "loreft", "target": ["warm"], "alpha": 1e12},
        {"probe": "loreft", "target": ["warm"], "alpha": 1e12},
    ]},
    "after a huge one, a condition": {"stack": [
        {"probe": "vectors", "target": ["warm"], "alpha": 1e12},
        {"probe": "ace", "target": ["dry"], "condition": {"probe": "mlp", "label": "dry", "below": 0.5}},
    ]},
}  # fmt: skip


def everywhere(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The spec with more fields in each of its edits."""
    if "stack" in fields:
        return {"stack": [{**edit, **more} for edit in fields["stack"]]}
    return {**fields, **more}


def assert_numbers(output: Any, name: str) -> None:
    values = [entry.logprob for step in output.outputs[0].logprobs for entry in step.values()]
    assert not any(math.isnan(value) for value in values), f"{name}: not a number"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_huge_values_of_every_method_reach_nobody_else(
    dtype: str, llama: Path, tmp_path: Path, prompts: Callable[..., list[list[int]]]
) -> None:
    """As below for the probe's methods: few blocks, which the next requests write into. The bounds hold, too:
    a request moved by 1e12 with its norm kept, or capped, is still a number."""
    asked = prompts(len(HUGE_METHODS) + 1, 40)
    llm = start_engine(
        llama,
        write_probes(tmp_path),
        steering={"layers": "all", "max_probes": 16, "max_stages": 3},
        dtype=dtype,
        num_gpu_blocks_override=2 * len(asked) + 2,
        max_num_seqs=len(asked),
        enable_prefix_caching=False,
        max_model_len=64,
    )
    reference = generate(llm, asked, [None] * len(asked), max_tokens=6)
    for where, layers in (("both", [0, 1, 2, 3]), ("generation", [1])):
        specs = [everywhere(fields, where=where, layers=layers) for fields in HUGE_METHODS.values()]
        mixed = generate(llm, asked, [None, *specs], max_tokens=6)
        assert exact(mixed[0]) == exact(reference[0]), "a neighbour in the batch changed"
        after = generate(llm, asked, [None] * len(asked), max_tokens=6)
        assert [exact(output) for output in after] == [exact(output) for output in reference]
        for name, output in zip(HUGE_METHODS, mixed[1:], strict=True):
            assert len(output.outputs[0].token_ids) == 6
            assert_numbers(output, name)


def test_bfloat16(
    llama: Path,
    probes: dict[str, Path],
    load_probes: Callable[..., dict[str, Probe]],
    prompts: Callable[..., list[list[int]]],
) -> None:
    """Teacher-forced against the float32 oracle: right sign and size, and far nearer than unsteered."""
    llm = start_engine(llama, probes, steering={"layers": "all"}, dtype="bfloat16")
    oracle = Oracle(llama, load_probes(probes))
    specs = [
        SteeringSpec(probe="tones", target=["warm"], alpha=2.0, where="both"),
        SteeringSpec(probe="tones", avoid=["cold"], method="reflect", layers=[0, 1, 2]),
        SteeringSpec(probe="tones", target=["dry"], method="add", alpha=1.5, where="prompt"),
    ]
    asked = prompts(3, 16)
    outputs = generate(llm, asked, [spec.canonical() for spec in specs])
    for prompt, output, spec in zip(asked, outputs, specs, strict=True):
        tokens = output.outputs[0].token_ids
        steered, _ = oracle.log_probs(prompt, tokens, spec)
        plain, _ = oracle.log_probs(prompt, tokens, None)
        reported = [
            step[token].logprob for step, token in zip(output.outputs[0].logprobs, tokens, strict=True)
        ]
        error = max(abs(value - float(steered[j, tokens[j]])) for j, value in enumerate(reported))
        effect = max(abs(float(plain[j, token] - steered[j, token])) for j, token in enumerate(tokens))
        print(f"bfloat16, {spec.method or 'gradient'}: error {error:.3f}, effect {effect:.2f}")
        assert error < BFLOAT16_TOLERANCE
        assert effect > 2 * BFLOAT16_TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt2", "gemma2"])
def test_huge_strength_reaches_nobody_else(
    family: str,
    dtype: str,
    model_folder: Callable[[str], Path],
    probe_folders: Callable[[str], dict[str, Path]],
    prompts: Callable[..., list[list[int]]],
) -> None:
    """Few blocks, so that the next requests write into what the huge ones left behind."""
    llm = start_engine(
        model_folder(family),
        probe_folders(family),
        steering={"layers": "all"},
        dtype=dtype,
        num_gpu_blocks_override=17,
        enable_prefix_caching=False,
        max_model_len=64,
    )
    asked = prompts(len(HUGE) + 1, 40)
    reference = generate(llm, asked, [None] * len(asked), max_tokens=10)
    for where, layers in (("both", [0, 1, 2, 3]), ("generation", [1])):
        specs = [{"probe": "tones", "where": where, "layers": layers, **fields} for fields in HUGE.values()]
        mixed = generate(llm, asked, [None, *specs], max_tokens=10)
        assert all(len(output.outputs[0].token_ids) == 10 for output in mixed)
        assert exact(mixed[0]) == exact(reference[0]), "a neighbour in the batch changed"
        after = generate(llm, asked, [None] * len(asked), max_tokens=10)
        for left, right in zip(after, reference, strict=True):
            assert exact(left) == exact(right), "a later request changed"
        for name, output in zip(HUGE, mixed[1:], strict=True):
            assert_numbers(output, name)


def test_huge_probe_weights(llama: Path, tmp_path: Path, prompts: Callable[..., list[list[int]]]) -> None:
    """Finite weights whose products are not: the edit is dropped, never written."""
    from dataclasses import replace

    from testbed.probes import random_probe

    probe = random_probe(width=16)
    huge = {name: probe.tensors[name] * 1e18 for name in ("w1", "w2", "w3")}
    big = replace(probe, tensors={**probe.tensors, **huge})
    big.save(tmp_path)
    llm = start_engine(llama, {"tones": tmp_path}, steering={"layers": "all"}, num_gpu_blocks_override=9)
    prompt, other = prompts(2, 40)
    reference = generate_one(llm, other)
    for fields in HUGE.values():
        llm.reset_prefix_cache()
        spec = {"probe": "tones", "where": "both", **fields}
        mixed = generate(llm, [prompt, other], [spec, None])
        values = [entry.logprob for step in mixed[0].outputs[0].logprobs for entry in step.values()]
        assert not any(math.isnan(value) for value in values)
        assert_same(mixed[1], reference)
        llm.reset_prefix_cache()
        assert_same(generate_one(llm, other), reference)


def test_tiny_strength_is_continuous(engine: Any, prompts: Callable[..., list[list[int]]]) -> None:
    """alpha near 0 is near the plain run; a window of one token still shows at full strength."""
    prompt = prompts(1, 16)[0]
    plain = generate_one(engine, prompt)
    engine.reset_prefix_cache()
    spec = {"probe": "tones", "target": ["warm"], "alpha": 1e-6, "where": "both"}
    assert_same(generate_one(engine, prompt, spec), plain)
    one = {**spec, "alpha": 4.0, "where": {"prompt": [15, 16]}}
    first = generate_one(engine, prompt, one, max_tokens=1).outputs[0]
    was = plain.outputs[0]
    common = [token for token in first.logprobs[0] if token in was.logprobs[0]]
    moved = max(abs(first.logprobs[0][t].logprob - was.logprobs[0][t].logprob) for t in common)
    assert moved > VISIBLE > TOLERANCE
