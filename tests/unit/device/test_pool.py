"""Probes coming and going in a worker's slots, and the engine core's guard before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ksteer_kernels import SlotWeights
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.device.pool import ProbePool
from ksteer_vllm.errors import PoolFullError, ProbeError
from ksteer_vllm.methods.mlp import MLPProgram
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.admitted import ADMISSION_KEY, AdmittedEdit, AdmittedRequest
from testbed.models import HIDDEN_SIZE
from tests.support.probe_directory import NAMES

NUM_LABELS = 3
ConfigOf = Callable[..., ResolvedConfig]


def pool_of(config: ResolvedConfig) -> ProbePool:
    return ProbePool(config, hidden_size=HIDDEN_SIZE, weight_dtype=torch.float32, device=torch.device("cpu"))


def digest(directory: Path, name: str) -> str:
    return Probe.load_metadata(directory / name).digest


def weights_in(pool: ProbePool, slot: int) -> dict[str, torch.Tensor]:
    return {
        name: tensor[slot, :NUM_LABELS].clone() if name.startswith("head") else tensor[slot].clone()
        for name, tensor in pool.tables.tensors().items()
        if name != "up_slot"  # names the slot itself
    }


def rows(pool: ProbePool, directory: Path, name: str) -> Any:
    """The settings of one edit at layer 1 under a probe, by way of a registry that knows it."""
    config = ResolvedConfig(
        probes={"a": {"path": str(directory / name), "digest": digest(directory, name)}},  # type: ignore[dict-item]
        layers=(1, 2),
        resolved=True,
    )
    admitted = Registry.from_config(config).admit({"probe": "a", "target": ["warm"]})
    assert admitted is not None
    return pool.request_rows(admitted.for_request(4, 4)).cells[1, 0]


def test_slots_are_used_again_and_hold_the_right_weights(config_of: ConfigOf, directory: Path) -> None:
    pool, alone = pool_of(config_of(max_slots=8)), {}
    for name in NAMES:
        fresh = pool_of(config_of(probes={"x": str(directory / name)}))
        settings = rows(fresh, directory, name)
        alone[name] = weights_in(fresh, settings.slot), settings.readout
    for name in ("second", "third", "second", "first", "third"):
        for other in pool.digests:
            if len(pool.digests) == 2 and other != digest(directory, name):
                pool.unload(other)
                break
        pool.load(str(directory / name), digest(directory, name))
        settings = rows(pool, directory, name)
        weights, readout = alone[name]
        assert torch.equal(settings.readout, readout)
        held = weights_in(pool, settings.slot)
        assert all(torch.equal(held[table], weights[table]) for table in weights)
        assert pool.tables.up_slot[settings.slot] == settings.slot
        assert pool.digest_of_slot[settings.slot] == digest(directory, name)


def test_a_full_pool_and_a_changed_folder_are_refused_and_change_nothing(
    config_of: ConfigOf, directory: Path, tmp_path: Path
) -> None:
    pool = pool_of(config_of(max_slots=4))
    before = {name: tensor.clone() for name, tensor in pool.tables.tensors().items()}
    with pytest.raises(PoolFullError, match="needs 4 slots; 0 of 4 are free"):
        pool.load(str(directory / "second"), digest(directory, "second"))
    pool.load(str(tmp_path / "gone"), digest(directory, "first"))  # resident already
    pool.unload("0" * 64)
    assert all(torch.equal(before[name], tensor) for name, tensor in pool.tables.tensors().items())
    pool = pool_of(config_of())
    with pytest.raises(ProbeError, match="has changed"):
        pool.load(str(directory / "second"), digest(directory, "third"))
    with pytest.raises(ProbeError, match="No such file"):
        pool.load(str(tmp_path / "gone"), digest(directory, "second"))
    assert pool.digests == (digest(directory, "first"),)


def test_the_rows_of_a_metric_take_a_slot_that_comes_and_goes_with_theirs(
    config_of: ConfigOf, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = MLPProgram.slots_at

    def slots_at(program: MLPProgram, tensors: Mapping[str, torch.Tensor]) -> dict[str, SlotWeights]:
        slots = plain(program, tensors)
        weights = slots["probe"]
        return {**slots, "metric": replace(weights, up=2 * weights.basis)}

    monkeypatch.setattr(MLPProgram, "slots_at", slots_at)
    assert pool_of(config_of(probe_dirs=[])).tables.num_slots == 6
    pool = pool_of(config_of(max_slots=11))
    assert pool.num_free == 5
    with pytest.raises(PoolFullError, match="needs 6 slots; 5 of 11 are free"):
        pool.load(str(directory / "second"), digest(directory, "second"))
    slot, up_slot = next(pair for pair in pool.tables.cpu_up_slots.items() if pair[0] != pair[1])
    assert torch.equal(pool.tables.basis[up_slot], 2 * pool.tables.basis[slot])
    assert pool.digest_of_slot[up_slot] == digest(directory, "first")
    pool.unload(digest(directory, "first"))
    assert pool.num_free == 11
    assert not pool.tables.basis.any()
    pool.load(str(directory / "second"), digest(directory, "second"))
    assert pool.num_free == 5


def test_room_is_kept_only_where_probes_can_be_loaded(config_of: ConfigOf) -> None:
    assert pool_of(config_of(probe_dirs=[])).num_free == 0
    assert pool_of(config_of(max_probes=5)).num_free == 30
    with pytest.raises(ProbeError, match="max_labels=2"):
        pool_of(config_of(max_labels=2))


class FakeCore:
    """An engine core with one worker that does as it is told."""

    def __init__(self, resident: str) -> None:
        config = {"ksteer": {"probes": {"a": {"path": "", "digest": resident}}}}
        self.vllm_config = SimpleNamespace(additional_config=config)
        self.scheduler = SimpleNamespace(requests={})
        self.asked: list[tuple[Any, ...]] = []
        self.answer: dict[str, Any] = {"ok": True}

    def collective_rpc(self, method: str, timeout: float | None, args: Any, kwargs: Any) -> list[Any]:
        self.asked.append((method, *args))
        return [self.answer]

    def preprocess_add_request(self, request: Any) -> str:
        return "added"


def request(*digests: str, condition: str = "") -> Any:
    edits = tuple(AdmittedEdit({}, "", digest, (0, 0, 0, 0), condition) for digest in digests)
    extra = {ADMISSION_KEY: AdmittedRequest(edits).to_wire()} if digests else None
    return SimpleNamespace(request_id="r", sampling_params=SimpleNamespace(extra_args=extra))


def test_the_engine_core_unloads_only_what_no_request_needs() -> None:
    from ksteer_vllm.host import engine_core

    rpc = engine_core.collective_rpc(FakeCore.collective_rpc)
    add = engine_core.preprocess_add_request(FakeCore.preprocess_add_request)
    core = FakeCore("old")
    assert add(core, request()) == "added"
    assert add(core, request("old")) == "added"
    for missing in (request("new"), request("old", "new"), request("old", condition="new")):
        with pytest.raises(RuntimeError, match="no longer loaded"):
            add(core, missing)
    core.answer = {"ok": False, "why": "full"}
    rpc(core, "ksteer_load", None, ["path", "new"], None)
    with pytest.raises(RuntimeError, match="no longer loaded"):
        add(core, request("new"))
    core.answer = {"ok": True}
    rpc(core, "ksteer_load", None, ["path", "new"], None)
    assert add(core, request("new")) == "added"

    for running in (request("old"), request("new", condition="old")):
        core.scheduler.requests = {"r": running, "plain": request()}
        assert rpc(core, "ksteer_unload", None, ["old"], None) == [{"ok": False, "why": "in use"}]
    assert ("ksteer_unload", "old") not in core.asked
    core.scheduler.requests = {"r": request("new")}
    assert rpc(core, "ksteer_unload", None, ["old"], None) == [{"ok": True}]
    with pytest.raises(RuntimeError, match="no longer loaded"):
        add(core, request("old"))
    assert rpc(core, "something_else", 1.0, ("x",), None) == [{"ok": True}]
