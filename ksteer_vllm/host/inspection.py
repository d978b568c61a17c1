"""What an offline engine says about itself, for `ksteer verify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.errors import ConfigError
from ksteer_vllm.models import model_identity
from ksteer_vllm.versions import running_versions

__all__ = ["EngineFacts", "eager_context", "engine_facts"]


@dataclass(frozen=True)
class EngineFacts:
    """An engine's model, sizes in tokens, and registry. versions: of ksteer, vllm and torch."""

    model: str
    num_layers: int
    vocabulary: int
    max_model_len: int
    registry: Registry
    versions: dict[str, str]


def engine_facts(llm: Any) -> EngineFacts:
    """The facts about a `vllm.LLM`. Raises ConfigError if it was started without steering."""
    registry = llm.llm_engine.input_processor.ksteer_admission.registry
    if registry is None:
        raise ConfigError("steering is not enabled in this engine")
    config = llm.llm_engine.vllm_config.model_config
    identity = model_identity(config)
    return EngineFacts(
        model=identity.name,
        num_layers=identity.num_layers,
        vocabulary=int(config.get_vocab_size()),
        max_model_len=int(config.max_model_len),
        registry=registry,
        versions=running_versions(),
    )


def eager_context(model: str) -> Any:
    """A context in which transformers' classes can be built beside vLLM's transformers backend, which
    replaces parts of them."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs

    return set_current_vllm_config(EngineArgs(model=model, enforce_eager=True).create_engine_config())
