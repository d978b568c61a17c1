"""Kinds of models against transformers with hooks: experts, windows, linear attention, quantised weights.

Log-probabilities within 1e-3 in float32, as in `testbed.compare`; prompts of 70 tokens, so that windows
of 32 have passed most of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ksteer_vllm import SteeringSpec
from tests.claims.matrix.cases import SPECS, as_output, prompts, with_method
from tests.support.engines import generate, start_engine
from tests.support.oracle import Oracle
from tests.support.programs import result_of, start_program

Probes = Callable[[Path], dict[str, Path]]


@pytest.mark.parametrize("family", ["windowed_mistral", "gemma2", "gemma3"])
def test_windows(
    family: str, tiny_model: Callable[..., Path], tiny_probes: Probes, oracle_of: Callable[[Path], Oracle]
) -> None:
    model = tiny_model(family)
    llm = start_engine(model, tiny_probes(model), steering={"layers": "all"})
    assert llm.llm_engine.vllm_config.model_config.hf_text_config.sliding_window == 32
    asked = prompts(len(SPECS))
    outputs = generate(llm, asked, list(SPECS.values()))
    oracle_of(model).check(SPECS, asked, outputs, family)


@pytest.fixture(scope="module")
def with_experts(tiny_model: Callable[..., Path], tiny_probes: Probes) -> dict[str, list[Any]]:
    """family -> outputs of its engine; all have experts."""
    jobs = []
    for family, dtype, method in (
        ("mixtral", "float32", None), ("qwen3_moe", "float32", None), ("qwen3_next", "bfloat16", "add"),
    ):  # fmt: skip
        model = tiny_model(family)
        probes = {name: str(path) for name, path in tiny_probes(model).items()}
        jobs.append((str(model), probes, dtype, method))
    program = start_program("tests.claims.matrix.experts_run", json.dumps(jobs), environment={})
    families = [Path(model).name.rpartition("-")[0] for model, *_ in jobs]
    answers = result_of(program)
    return {
        family: [as_output(answer) for answer in found]
        for family, found in zip(families, answers, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts(
    family: str,
    with_experts: dict[str, list[Any]],
    tiny_model: Callable[..., Path],
    oracle_of: Callable[[Path], Oracle],
) -> None:
    oracle_of(tiny_model(family)).check(SPECS, prompts(len(SPECS)), with_experts[family], family)


@pytest.mark.slow
def test_linear_attention_beside_full_attention(
    with_experts: dict[str, list[Any]], tiny_model: Callable[..., Path], oracle_of: Callable[[Path], Oracle]
) -> None:
    """Qwen3-Next's gated delta net runs in bfloat16 only on a CPU; the oracle is float32.

    Within 0.3: bfloat16 rounds to 3 digits, steered and unsteered alike (0.04 to 0.2 seen). Adding vectors,
    which no kink of a probe makes jump, moves by more than 0.9.
    """
    oracle = oracle_of(tiny_model("qwen3_next"))
    near(
        oracle,
        with_method("add"),
        prompts(len(SPECS)),
        with_experts["qwen3_next"],
        tolerance=0.3,
        effect=0.9,
    )


def test_quantised_weights(
    llama: Path, tmp_path: Path, tiny_probes: Probes, oracle_of: Callable[[Path], Oracle]
) -> None:
    """Eight-bit weights and activations (compressed-tensors), against the same rounding in transformers.

    The activations have a zero point: for symmetric ones vLLM takes, on processors with AMX, a kernel that
    refuses float32; with a zero point it takes oneDNN's on every processor.

    Within 0.1: an activation within float32 rounding of a half may round to either side, one 255th of its
    token's range; such tokens move log-probabilities by 0.03, steered or not. Steering moves them by 0.3.
    """
    quantised, rounded = quantise(llama, tmp_path)
    llm = start_engine(quantised, tiny_probes(quantised), steering={"layers": "all"})
    assert llm.llm_engine.vllm_config.model_config.quantization == "compressed-tensors"
    asked = prompts(len(SPECS))
    outputs = generate(llm, asked, list(SPECS.values()))
    oracle = oracle_of(rounded)
    for name, module in oracle.model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(round_activations)
    near(oracle, SPECS, asked, outputs, tolerance=0.1, effect=0.3)


def near(
    oracle: Oracle,
    specs: Mapping[str, SteeringSpec | None],
    asked: Sequence[Sequence[int]],
    outputs: Sequence[Any],
    *,
    tolerance: float,
    effect: float,
) -> None:
    """Every case within tolerance of the oracle, and every steered one more than `effect` from unsteered."""
    for (name, spec), prompt, output in zip(specs.items(), asked, outputs, strict=True):
        error = oracle._error(prompt, output, spec)[0]
        moved = oracle._error(prompt, output, None)[0]
        print(f"{name}: error {error:.2g}, effect {moved:.2g}")
        assert error < tolerance, name
        assert spec is None or moved > effect, name


def round_activations(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Each token [..., width] to 8 bits and back, by its own smallest and largest value."""
    (x,) = arguments
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = (high - low) / 255
    zero = (-128 - low / scale).round()
    return (((x / scale).round() + zero).clamp(-128, 127).sub(zero) * scale,)


def quantise(model: Path, folder: Path) -> tuple[Path, Path]:
    """(the model with 8-bit weights, one scale per row; the float32 model with the same rounded weights)."""
    quantised, rounded = folder / "quantised", folder / "rounded"
    for copy in (quantised, rounded):
        shutil.copytree(model, copy)
    weights = load_file(model / "model.safetensors")
    integers: dict[str, Tensor] = dict(weights)
    for name, weight in weights.items():
        if weight.ndim == 2 and ".layers." in name:
            scale = weight.abs().amax(1, keepdim=True) / 127
            whole = (weight / scale).round().clamp(-128, 127)
            integers[name] = whole.to(torch.int8)
            integers[name.replace(".weight", ".weight_scale")] = scale
            weights[name] = whole * scale
    save_file(integers, quantised / "model.safetensors", metadata={"format": "pt"})
    save_file(weights, rounded / "model.safetensors", metadata={"format": "pt"})
    shared = {"num_bits": 8, "type": "int"}
    group = {
        "targets": ["Linear"],
        "weights": {**shared, "symmetric": True, "strategy": "channel", "dynamic": False},
        "input_activations": {**shared, "symmetric": False, "strategy": "token", "dynamic": True},
    }
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (quantised / "config.json").write_text(json.dumps(config))
    return quantised, rounded
