"""The steering configuration of a VllmConfig: resolved at start-up, read everywhere else."""

from __future__ import annotations

import sys
from typing import Any

import torch
from vllm import envs

from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.config import CONFIG_KEY, EngineConfig, ResolvedConfig
from ksteer_vllm.errors import ConfigError
from ksteer_vllm.models import model_identity

__all__ = [
    "engine_config",
    "refuse_grpc_server",
    "refuse_rust_front_end",
    "resolve_in_place",
]

# Engine features under which a decoder layer sees only some of the tokens, or not in order.
_UNSUPPORTED: dict[str, tuple[str, ...]] = {
    "dual-batch overlap (--enable-dbo)": ("parallel_config", "enable_dbo"),
    "micro-batching (--ubatch-size)": ("parallel_config", "use_ubatching"),
    "sequence parallelism (pass_config.enable_sp)": ("compilation_config", "pass_config", "enable_sp"),
    "KV-sharing fast prefill (--kv-sharing-fast-prefill)": ("cache_config", "kv_sharing_fast_prefill"),
}

_KEYED_CONNECTORS = ("OffloadingConnector",)
"""KV connectors that look everything up by vLLM's block hashes, which include the steering keys."""


def engine_config(vllm_config: Any) -> ResolvedConfig | None:
    """The resolved steering configuration, or None where steering is not enabled."""
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or CONFIG_KEY not in additional:
        return None
    given = additional[CONFIG_KEY]
    if ResolvedConfig.recognises(given):
        return ResolvedConfig.parse(given)
    return resolve_config(EngineConfig.parse(given), model_identity(vllm_config.model_config))


def resolve_in_place(vllm_config: Any) -> None:
    """Check the engine against the configuration and write the resolved one back, for every process.

    Raises ConfigError or ProbeError: start-up fails, by name, before any process of the engine starts.
    """
    config = engine_config(vllm_config)
    if config is None:
        return
    refuse_unsupported(vllm_config)
    if config.capture is not None and not vllm_config.model_config.enforce_eager:
        raise ConfigError("ksteer option capture: needs an eager engine (enforce_eager=True)")
    Registry.from_config(config)  # refuses presets that cannot be run; each front end makes one of its own
    vllm_config.additional_config = {**vllm_config.additional_config, CONFIG_KEY: config.as_json()}


def refuse_rust_front_end(additional_config: Any) -> None:
    """Raise ConfigError if steering is configured and vLLM would serve through its Rust front end."""
    if CONFIG_KEY in (additional_config or {}) and getattr(envs, "VLLM_USE_RUST_FRONTEND", False):
        raise ConfigError(
            "steering cannot run with vLLM's Rust front end (VLLM_USE_RUST_FRONTEND=1), which does not "
            "check specs"
        )


def refuse_grpc_server(additional_config: Any, args: Any) -> None:
    """Raise ConfigError if steering is configured and the arguments or the program are a gRPC server's."""
    serves = getattr(args, "grpc", False) or hasattr(sys.modules.get("__main__"), "serve_grpc")
    if CONFIG_KEY in (additional_config or {}) and serves:
        raise ConfigError(
            "steering cannot run with vLLM's gRPC server (--grpc), whose requests have no place for a spec"
        )


def refuse_unsupported(vllm_config: Any) -> None:
    """Raise ConfigError naming an engine feature that steering cannot run under."""
    for feature, path in _UNSUPPORTED.items():
        value = vllm_config
        for name in path:
            value = getattr(value, name, None)
        if value:
            raise ConfigError(
                f"steering cannot run with {feature}: a layer would see only some of the tokens"
            )
    if getattr(vllm_config.parallel_config, "prefill_context_parallel_size", 1) > 1:
        raise ConfigError("steering cannot run with prefill context parallelism: tokens are split over ranks")
    if getattr(vllm_config.parallel_config, "decode_context_parallel_size", 1) > 1:
        raise ConfigError(
            "steering cannot run with decode context parallelism (--decode-context-parallel-size), under "
            "which it has not been tested"
        )
    if getattr(vllm_config.parallel_config, "enable_expert_parallel", False):
        raise ConfigError(
            "steering cannot run with expert parallelism (--enable-expert-parallel), under which it has "
            "not been tested: vLLM's CPU build crashes there even without this plugin"
        )
    _refuse_kv_transfer(vllm_config.kv_transfer_config)
    if vllm_config.model_config.is_encoder_decoder:
        raise ConfigError("steering cannot run with an encoder-decoder model; it needs a decoder-only one")
    if vllm_config.model_config.dtype == torch.float16:
        raise ConfigError(
            "steering cannot run with float16: a strong edit would overflow in the layers above, and the "
            "infinities it leaves in the cache would reach other requests; use bfloat16 or float32"
        )
    if vllm_config.model_config.runner_type != "generate":
        raise ConfigError(
            f"steering needs a generation engine; this one runs {vllm_config.model_config.runner_type!r}"
        )


def _refuse_kv_transfer(transfer: Any) -> None:
    """Raise ConfigError naming a KV connector that may match blocks by their tokens alone."""
    if transfer is None or not transfer.kv_connector:
        return
    parts = [(transfer.kv_connector, transfer.kv_connector_module_path)]
    if transfer.kv_connector == "MultiConnector":
        children = transfer.kv_connector_extra_config.get("connectors", [])
        parts = [(child.get("kv_connector"), child.get("kv_connector_module_path")) for child in children]
    for name, module in parts:
        if module or name not in _KEYED_CONNECTORS:
            raise ConfigError(
                f"steering cannot run with KV transfer or disaggregated prefill through {name} "
                "(--kv-transfer-config): it may match a prompt by its tokens alone and would hand the cache "
                f"of a steered request to others; allowed: vLLM's {', '.join(_KEYED_CONNECTORS)}"
            )
