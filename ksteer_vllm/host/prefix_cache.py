"""Prefix-cache keys: steered blocks are keyed by what was done to their own tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ksteer_vllm.host.admitted import admission_record
from ksteer_vllm.spec.fingerprint import block_key

__all__ = ["with_steering_keys"]


def with_steering_keys(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `generate_block_hash_extra_keys(request, start, end, start_mm_idx) -> (keys or None, mm_idx)`."""

    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        keys, next_mm = original(request, start_token_idx, end_token_idx, *args, **kwargs)
        record = admission_record(request.sampling_params)
        if record is None:
            return keys, next_mm
        key = block_key(record["edits"], start_token_idx, end_token_idx)
        if key is None:
            return keys, next_mm
        return (*(keys or ()), key), next_mm

    return generate_block_hash_extra_keys
