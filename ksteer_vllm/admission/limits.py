"""How much one request may ask for: each limit is a key of `EngineConfig`, each refusal names it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.config import EngineConfig
from ksteer_vllm.errors import SpecError
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY, SteeringSpec

__all__ = ["check_request_layers", "check_size", "check_stack"]


def check_size(value: Any, config: EngineConfig) -> str | bytes | None:
    """Refuse a spec of more than max_spec_bytes of compact JSON.

    Args:
        value: What a request asks for, as it came, text or decoded.
        config: The engine's options.

    Returns:
        Its JSON text, by which the same spec is recognised; None if it holds types that are not JSON's.

    Raises:
        SpecError: If it is too large, or not JSON-serialisable, so that it has no size.
    """
    text, is_plain = _as_json(value)
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > config.max_spec_bytes:
        raise SpecError(
            EXTRA_ARGS_KEY,
            f"at most max_spec_bytes={config.max_spec_bytes} bytes of JSON, got {size}",
            size,
            reason="size",
        )
    return text if is_plain else None


def check_stack(spec: SteeringSpec, config: EngineConfig) -> None:
    """Raise SpecError for a stack of more than max_stack edits."""
    if spec.stack is not None and len(spec.stack) > config.max_stack:
        raise SpecError(
            "stack", f"at most max_stack={config.max_stack} edits, got {len(spec.stack)}", len(spec.stack)
        )


def check_request_layers(layers: Sequence[int], before: int, config: EngineConfig) -> int:
    """Add an edit's layers to those of the edits before it.

    Args:
        layers: Those of the edit.
        before: How many layers the edits before it steer.
        config: Has the limit.

    Returns:
        How many it is now.

    Raises:
        SpecError: Beyond max_request_layers in all.
    """
    total = before + len(layers)
    if total > config.max_request_layers:
        raise SpecError(
            "layers",
            f"at most max_request_layers={config.max_request_layers} layers in a request, got {total}",
            total,
        )
    return total


def _as_json(value: Any) -> tuple[str | bytes, bool]:
    """The compact JSON text of a value, and whether it holds JSON's own types only."""
    if isinstance(value, SteeringSpec):
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, (str, bytes)):
        return value, True
    converted = False

    def plain(item: Any) -> Any:
        nonlocal converted
        converted = True
        return _plain(item)

    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=plain)
    except RecursionError:
        raise SpecError(EXTRA_ARGS_KEY, "nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise SpecError(EXTRA_ARGS_KEY, f"not JSON-serialisable: {str(error)[:200]}") from None
    return text, not converted


def _plain(value: Any) -> Any:
    """What offline callers may pass beside JSON: pydantic objects such as a `Where`, mappings, ranges, and
    numbers of other libraries."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, range):
        return list(value)
    try:
        return float(value)
    except Exception:
        raise TypeError(f"a {type(value).__name__}") from None
