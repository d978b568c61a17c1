"""How much one request may ask for: each limit is a key of `EngineConfig`, each refusal names it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ksteer_vllm.config import EngineConfig
from ksteer_vllm.errors import SpecError
from ksteer_vllm.spec import EXTRA_ARGS_KEY, SteeringSpec

__all__ = ["check_request_layers", "check_size", "check_stack"]


def check_size(value: Any, config: EngineConfig) -> None:
    """Raise SpecError if what a request says of steering is more than max_spec_bytes of compact JSON.

    value: as it came, text or decoded, before anything else looks at it. What JSON cannot say passes: the
    parser names the field.
    """
    size = _size(value)
    if size > config.max_spec_bytes:
        raise SpecError(
            EXTRA_ARGS_KEY,
            f"at most max_spec_bytes={config.max_spec_bytes} bytes of JSON, got {size}",
            size,
            reason="size",
        )


def check_stack(spec: SteeringSpec, config: EngineConfig) -> None:
    """Raise SpecError for a stack of more than max_stack edits."""
    if spec.stack is not None and len(spec.stack) > config.max_stack:
        raise SpecError(
            "stack", f"at most max_stack={config.max_stack} edits, got {len(spec.stack)}", len(spec.stack)
        )


def check_request_layers(layers: Sequence[int], before: int, config: EngineConfig) -> int:
    """Add an edit's layers to those of the edits before it; SpecError beyond max_request_layers in all."""
    total = before + len(layers)
    if total > config.max_request_layers:
        raise SpecError(
            "layers",
            f"at most max_request_layers={config.max_request_layers} in a request, got {total}",
            total,
        )
    return total


def _size(value: Any) -> int:
    if isinstance(value, SteeringSpec):
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, bytes):
        return len(value)
    try:
        text = value if isinstance(value, str) else _compact_json(value)
    except RecursionError:
        raise SpecError(EXTRA_ARGS_KEY, "nested too deeply") from None
    except (TypeError, ValueError):
        return 0
    return len(text.encode("utf-8", "surrogatepass"))


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_mapping)


def _as_mapping(value: Any) -> Any:
    """pydantic objects in an offline caller's mapping, such as a `Where`."""
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError
    return dump(mode="json")
