"""What a worker answers when something goes wrong in it, and what it reads before a probe goes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.config import EngineConfig, ResolvedConfig
from ksteer_vllm.device.state import SteeringState
from ksteer_vllm.host import rpc
from ksteer_vllm.probes.probe import Probe
from testbed.models import HIDDEN_SIZE
from tests.support.programs import ROOT

TOKENS = 4


def worker_of(config: ResolvedConfig) -> Any:
    state = SteeringState(
        config,
        hidden_size=HIDDEN_SIZE,
        weight_dtype=torch.float32,
        device=torch.device("cpu"),
        max_rows=4,
        max_tokens=2 * TOKENS,
    )
    return SimpleNamespace(ksteer_state=state)


def test_no_exception_leaves_a_worker(
    config_of: Callable[..., ResolvedConfig], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's executor would take the other ranks' answers for those of the next call."""
    worker = worker_of(config_of())
    pool, digest = worker.ksteer_state.pool, Probe.load_metadata(directory / "second").digest
    before, free = pool.digests, pool.num_free

    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("a device is full")

    with monkeypatch.context() as patch:
        patch.setattr(pool.tables, "load", out_of_memory)
        answer = rpc.ksteer_load(worker, str(directory / "second"), digest)
        assert (answer["ok"], answer["why"]) == (False, "failed")
        assert "OutOfMemoryError" in answer["message"]
    assert (pool.digests, pool.num_free) == (before, free)
    assert rpc.ksteer_load(worker, str(directory / "second"), digest) == {"ok": True}
    with monkeypatch.context() as patch:
        patch.setattr(pool.tables, "clear", out_of_memory)
        assert rpc.ksteer_unload(worker, digest)["ok"] is False
    with monkeypatch.context() as patch:
        patch.setattr(worker.ksteer_state, "collect_reports", out_of_memory)
        assert rpc.ksteer_take_reports(worker, [("a", 3), ("b", 4)], []) == [b"", b""]


def unload_after_a_report(directory: Path) -> None:
    """Run as a program, with Triton's interpreter: the device still holds the last step's report when its
    probe is unloaded, as after a client has gone."""
    from ksteer_vllm.admission.resolve import resolve_config
    from testbed.probes import random_probe

    folders = {name: str(random_probe(seed=n, width=8).save(directory / name)) for n, name in enumerate("ab")}
    options = {"probes": folders, "layers": [1], "kernels": "triton", "max_width": 16}
    config = resolve_config(EngineConfig.parse(options), random_probe().metadata.model)
    worker, registry = worker_of(config), Registry.from_config(config)
    state = worker.ksteer_state

    def step(row: int, request: str, probe: str, report: bool) -> None:
        spec = {"probe": probe, "target": ["warm"], "alpha": 1.0, "num_steps": 1, "where": "both"}
        admitted = registry.admit({**spec, "report": report})
        assert admitted is not None
        for_request = admitted.for_request(TOKENS, TOKENS)
        state.set_row(row, for_request)
        state.reports.add_request(request, for_request)
        positions = torch.arange(2 * TOKENS)
        starts = torch.tensor([0, TOKENS], dtype=torch.int32)
        state.begin_step(torch.tensor([row], dtype=torch.int32), starts, positions, TOKENS)
        state.reports.begin_step([request], [TOKENS], positions)
        state.at_layer(torch.randn(2 * TOKENS, HIDDEN_SIZE), None, 1)

    step(0, "gone", "a", report=True)
    assert rpc.ksteer_unload(worker, config.probes["a"].digest) == {"ok": True}
    state.clear_row(0)
    state.reports.remove_request("gone")
    step(1, "next", "b", report=False)
    assert rpc.ksteer_take_reports(worker, [("gone", TOKENS)], [])[0] != b""


def test_reports_on_the_device_are_read_before_their_probe_goes(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import sys; "
        "from tests.unit.host.test_rpc import unload_after_a_report as run; "
        "run(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
