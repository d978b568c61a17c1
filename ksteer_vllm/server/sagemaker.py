"""SageMaker's `/invocations`: vLLM takes the model from a header and drops the one in the body."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping

from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["ROUTE", "dropped_preset"]

ROUTE = "/invocations"
HEADER = "X-Amzn-SageMaker-Adapter-Identifier"


def dropped_preset(
    headers: Iterable[tuple[bytes, bytes]], body: bytes, presets: Collection[str]
) -> str | None:
    """Why a JSON body whose model is `BASE:PRESET` is refused; None if the header names the same model."""
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return None
    model = decoded.get("model") if isinstance(decoded, Mapping) else None
    if not isinstance(model, str) or model.rpartition(":")[2] not in presets:
        return None
    name = HEADER.lower().encode()
    if any(found.lower() == name and value == model.encode() for found, value in headers):
        return None
    return (
        f"{EXTRA_ARGS_KEY}: {ROUTE} drops the model of the body and would lose the preset; send the header "
        f"{HEADER}: BASE:PRESET"
    )
