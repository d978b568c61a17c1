"""Weights replaced in a running engine (RL loops)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from testbed.compare import assert_differ
from tests.claims.matrix.cases import SPECS, prompts
from tests.support.engines import generate, start_engine, worker
from tests.support.oracle import Oracle


def test_steering_survives_new_weights(
    llama: Path,
    tiny_model: Callable[..., Path],
    tiny_probes: Callable[[Path], dict[str, Path]],
    oracle_of: Callable[[Path], Oracle],
) -> None:
    """As RL loops do: dummy weights at the start, then weights from disk, from another folder, from memory.

    Steered output is that of the new weights; layers and probes stay where they are.
    """
    other = tiny_model("llama", 5)
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"}, load_format="dummy")
    state = worker(llm).ksteer_state
    tables = {
        name: t.data_ptr() for name, t in vars(state.pool.tables).items() if isinstance(t, torch.Tensor)
    }
    asked = [prompts(1)[0]] * len(SPECS)
    dummy = generate(llm, asked, list(SPECS.values()))
    llm.collective_rpc("update_config", args=({"load_config": {"load_format": "auto"}},))
    before, after = oracle_of(llama), oracle_of(other)
    for title, source, oracle in (
        ("its own folder", {}, before),
        ("another folder", {"weights_path": str(other)}, after),
        ("back", {"weights_path": str(llama)}, before),
        ("memory", {"weights_iterator": list(load_file(other / "model.safetensors").items())}, after),
    ):
        llm.collective_rpc("reload_weights", kwargs=source)
        assert llm.reset_prefix_cache()
        outputs = generate(llm, asked, list(SPECS.values()))
        oracle.check(SPECS, asked, outputs, title)
        assert_differ(outputs[1], dummy[1], "the weights did not change:")
    assert worker(llm).ksteer_state is state
    assert tables == {name: getattr(state.pool.tables, name).data_ptr() for name in tables}
    layers = worker(llm).model_runner.get_model().model.layers
    assert all(type(layer).__name__ == "SteeredLlamaDecoderLayer" for layer in layers)
