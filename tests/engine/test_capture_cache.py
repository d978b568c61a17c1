"""What is captured is the same with a prefix cache: a position read from it would not be recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load

from ksteer_vllm.spec.capture import CAPTURE_KEY
from tests.support.engines import BLOCK_SIZE, generate_one, start_engine


def test_the_same_text_captured_twice_gives_all_positions_both_times(
    llama: Path, probes: dict[str, Path], prompts: Callable[..., list[list[int]]]
) -> None:
    """Plain and steered over the reply, whose prompt blocks are those of a plain request."""
    steering = {"layers": "all", "capture": {"layers": [1]}}
    llm = start_engine(llama, probes, steering=steering, enable_prefix_caching=True)
    prompt = prompts(1, 2 * BLOCK_SIZE + 6)[0]
    generate_one(llm, prompt)
    assert generate_one(llm, prompt).num_cached_tokens == 2 * BLOCK_SIZE
    for spec in (None, {"probe": "tones", "target": ["warm"], "alpha": 0.5}):
        found = []
        for name in ("first", "second"):
            window = {"id": name, "start": 3, "end": len(prompt)}
            generate_one(llm, prompt, spec, max_tokens=1, other={CAPTURE_KEY: window})
            (captured,) = llm.collective_rpc("ksteer_take_captures")
            found.append(load(captured)[f"1/{name}"])
        assert found[0].shape[0] == found[1].shape[0] == len(prompt) - 3
        assert torch.equal(*found)
    assert generate_one(llm, prompt).num_cached_tokens == 2 * BLOCK_SIZE, "others still read the cache"
