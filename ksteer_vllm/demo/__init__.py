"""What `ksteer demo` shows: SmolLM2 in `smollm2`, and a small world of our own, which needs no package index.

The small world: a corpus in six tones, an exact reader of it, and a tiny chat model.
"""

from pathlib import Path
from typing import Any, Final

__all__ = ["ENGINE_OPTIONS", "MODEL_DIR"]

MODEL_DIR: Final = Path(__file__).parent / "model"
"""Folder of the shipped chat model, in the form transformers and vLLM load."""

ENGINE_OPTIONS: Final[dict[str, Any]] = {
    "dtype": "float32",
    "enforce_eager": True,
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": 512 << 20,
    "max_model_len": 256,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
}
"""Arguments of `vllm.LLM` that suit the shipped model."""
