"""A worker's steering state: what it refuses, what it runs on, what it tells of."""

from __future__ import annotations

import pytest
import torch

from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.device import backend
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


@pytest.mark.parametrize(("asked", "runs"), [("auto", "torch"), ("torch", "torch"), ("triton", "triton")])
def test_the_backend_is_chosen_once(asked: str, runs: str) -> None:
    config = ResolvedConfig.parse({"kernels": asked, "layers": [0], "resolved": True})
    state = SteeringState(
        config,
        hidden_size=8,
        weight_dtype=torch.float32,
        device=torch.device("cpu"),
        max_rows=1,
        max_tokens=4,
    )
    assert state.backend.name == runs
    tables = state.pool.tables.nbytes + state.rows.nbytes
    assert state.nbytes == tables + state.backend.nbytes
    assert (state.backend.nbytes > 0) == (runs == "triton")  # scratch memory and report buffers


def test_operators_are_told_of_new_dropped_edits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(backend, "emit", lambda event, total: told.append(total))
    counters = backend.Counters()
    for total in (0, 2, 2, 5):
        counters.set_dropped(total)
    assert told == [2, 5]
    assert counters.snapshot()["dropped_edits"] == 5
