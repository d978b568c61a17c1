"""What a worker's steering state refuses."""

from __future__ import annotations

import pytest
import torch

from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.device.state import SteeringState
from ksteer_vllm.errors import ConfigError


def test_the_torch_path_is_refused_on_a_gpu() -> None:
    """It decides on the CPU who is steered, which a captured CUDA graph would freeze."""
    config = ResolvedConfig.parse({"kernels": "torch", "layers": [0], "resolved": True})
    with pytest.raises(ConfigError, match="kernels: torch runs on CPUs only"):
        SteeringState(
            config,
            hidden_size=8,
            weight_dtype=torch.float32,
            device=torch.device("cuda"),
            max_rows=1,
            max_tokens=1,
        )
