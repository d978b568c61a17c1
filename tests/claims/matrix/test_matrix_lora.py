"""A LoRA adapter and steering in the same request, against transformers with merged weights and hooks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from testbed.compare import assert_differ
from tests.claims.matrix.cases import SPECS, prompts
from tests.support.engines import sampling, start_engine, token_prompt
from tests.support.oracle import Oracle

RANK, ALPHA = 4, 8
LORA = {"max_lora_rank": 8, "max_loras": 2}
"""With max_loras=1 vLLM 0.32 on a CPU gives requests without an adapter the loaded one, plugin or not."""
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_lora_and_steering_in_one_request(
    llama: Path,
    tmp_path: Path,
    tiny_probes: Callable[[Path], dict[str, Path]],
    oracle_of: Callable[[Path], Oracle],
) -> None:
    """One batch: every spec with and without the adapter, the same prompt; then again, from the cache."""
    from vllm.lora.request import LoRARequest

    adapter, merged = write_adapter(llama, tmp_path)
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"}, enable_lora=True, **LORA)
    asked = [prompts(1)[0]] * len(SPECS)
    adapters = [LoRARequest("tiny", 1, str(adapter))] * len(SPECS) + [None] * len(SPECS)
    with_adapter, without = oracle_of(merged), oracle_of(llama)
    for title in ("cold", "cached"):
        outputs = llm.generate(
            [token_prompt(prompt) for prompt in asked * 2],
            [sampling(spec) for spec in SPECS.values()] * 2,
            lora_request=adapters,
            use_tqdm=False,
        )
        adapted, plain = outputs[: len(SPECS)], outputs[len(SPECS) :]
        with_adapter.check(SPECS, asked, adapted, f"adapter, {title}")
        without.check(SPECS, asked, plain, f"no adapter, {title}")
        for left, right in zip(adapted, plain, strict=True):
            assert_differ(left, right, "the adapter did nothing:")
    assert all(output.num_cached_tokens == 64 for output in outputs)


def write_adapter(model: Path, folder: Path) -> tuple[Path, Path]:
    """(PEFT files of a random adapter of every projection, the model with it merged into its weights)."""
    adapter, merged = folder / "adapter", folder / "merged"
    adapter.mkdir()
    shutil.copytree(model, merged)
    generator = torch.Generator().manual_seed(7)
    weights, tensors = load_file(model / "model.safetensors"), {}
    for name, weight in list(weights.items()):
        if not name.removesuffix(".weight").endswith(MODULES):
            continue
        down = torch.randn(RANK, weight.shape[1], generator=generator) * 0.1
        up = torch.randn(weight.shape[0], RANK, generator=generator) * 0.1
        stem = "base_model.model." + name.removesuffix(".weight")
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        weights[name] = weight + ALPHA / RANK * up @ down
    save_file(tensors, adapter / "adapter_model.safetensors")
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
        "target_modules": list(MODULES), "base_model_name_or_path": str(model),
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter, merged
