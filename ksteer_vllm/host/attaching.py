"""Attaching steering to a worker, right after it has loaded its model."""

from __future__ import annotations

import logging
from typing import Any

import torch
from vllm.forward_context import get_forward_context, is_forward_context_available

from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.device.layer import attach
from ksteer_vllm.device.ops import register_ops
from ksteer_vllm.device.state import SteeringState
from ksteer_vllm.errors import ConfigError, listing
from ksteer_vllm.host import runner_v1, runner_v2
from ksteer_vllm.host.settings import engine_config
from ksteer_vllm.models import find_decoder_layers

__all__ = ["attach_to_worker", "worker_state"]

_CONTEXT_KEY = "ksteer"

logger = logging.getLogger("vllm.ksteer")


def attach_to_worker(worker: Any) -> None:
    """Build the steering state of a worker whose model is loaded, and hook its model runner.

    Works with every model loader. Raises, and so stops the start-up, if an open layer cannot be attached.
    """
    vllm_config = worker.vllm_config
    config = engine_config(vllm_config)
    if config is None:
        return
    runner = worker.model_runner
    attached = _attach_layers(runner.get_model(), vllm_config, config)
    state = SteeringState(
        config,
        hidden_size=vllm_config.model_config.get_hidden_size(),
        weight_dtype=vllm_config.model_config.dtype if runner.device.type == "cuda" else torch.float32,
        device=runner.device,
        max_rows=vllm_config.scheduler_config.max_num_seqs,
        max_tokens=runner.max_num_tokens,
    )
    register_ops(_state_of_running_forward)
    vllm_config.compilation_config.static_forward_context[_CONTEXT_KEY] = state
    (runner_v2 if hasattr(runner, "model_state") else runner_v1).hook(runner, state)
    worker.ksteer_state = state
    logger.info(
        "steering: probes %s; layers %s; %.1f MiB of device tables; %s kernels",
        listing(config.probes),
        listing(attached, 100),
        state.nbytes / 2**20,
        state.backend.name,
    )


def worker_state(worker: Any) -> SteeringState:
    """The steering state of a worker. Raises ConfigError if it has none."""
    state = getattr(worker, "ksteer_state", None)
    if state is None:
        raise ConfigError("steering is not enabled in this engine")
    return state


def _attach_layers(model: Any, vllm_config: Any, config: ResolvedConfig) -> list[int]:
    """Attach every open layer this rank holds; `attach` raises where it cannot."""
    text_config = vllm_config.model_config.hf_text_config
    layers = find_decoder_layers(model, text_config.num_hidden_layers, config.decoder)
    wanted = set(config.layers) | set(config.capture.layers if config.capture else ())
    attached = []
    for index in sorted(wanted):
        if type(layers[index]).__name__ == "PPMissingLayer":  # another pipeline rank's
            continue
        attach(layers[index], index)
        attached.append(index)
    return attached


def _state_of_running_forward() -> SteeringState | None:
    """The state of the engine whose forward pass is running (several may share a process)."""
    if not is_forward_context_available():
        return None
    state = get_forward_context().no_compile_layers.get(_CONTEXT_KEY)
    if state is None:
        raise RuntimeError("a steered layer ran in an engine without steering state")
    return state
