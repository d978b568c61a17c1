"""Shared by the benchmarks that run engines: model shapes with dummy weights, engines, timed batches."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import bootstrap_interval, provenance, summary, write_result

__all__ = [
    "SHAPES",
    "bootstrap_interval",
    "engine",
    "generate_seconds",
    "provenance",
    "run_in_process",
    "steered_layer",
    "summary",
    "write_model",
    "write_result",
    "write_tokenizer",
]

# Shapes of public models; weights are dummies, so only the shape matters. `tiny` proves that a script works.
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
             "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 2048},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip


def run_in_process() -> None:
    """Set the environment for engines in this process; call it before vLLM is imported."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def steered_layer(shape: str) -> int:
    """The layer at 60 % depth."""
    return int(0.6 * SHAPES[shape]["num_hidden_layers"])


def write_model(shape: str, folder: Path) -> Path:
    """A Llama config.json of the given shape, for `load_format="dummy"` without a tokenizer."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, **SHAPES[shape],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tokenizer(shape: str, folder: Path) -> None:
    """A tokenizer with one word per token id, `t0`, `t1`, …: text and ids correspond one to one."""
    words = {f"t{index}": index for index in range(SHAPES[shape]["vocab_size"])}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def engine(
    model: Path,
    *,
    max_num_seqs: int,
    eager: bool,
    additional_config: dict[str, Any],
    max_model_len: int = 512,
    prefix_caching: bool = False,
    **options: Any,
) -> Any:
    """An in-process engine with dummy weights. Without prefix caching every run does the same work."""
    from vllm import LLM

    memory = {} if torch.cuda.is_available() else {"gpu_memory_utilization": 0.3}
    return LLM(
        str(model), load_format="dummy", skip_tokenizer_init=True, max_model_len=max_model_len, seed=0,
        max_num_seqs=max_num_seqs, enforce_eager=eager, enable_prefix_caching=prefix_caching,
        additional_config=additional_config, disable_log_stats=True, **memory, **options,
    )  # fmt: skip


def generate_seconds(
    llm: Any, extra_args: list[dict[str, Any] | None], tokens: int, prompt_tokens: int = 8
) -> float:
    """Wall time of one request per entry of extra_args, run together, of `tokens` generated tokens each."""
    from vllm import SamplingParams

    prompts = [
        {"prompt_token_ids": [3 + (7 * index + j) % 1000 for j in range(prompt_tokens)]}
        for index in range(len(extra_args))
    ]
    params = [
        SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra)
        for extra in extra_args
    ]
    started = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - started
