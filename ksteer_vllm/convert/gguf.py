"""Just enough of GGUF to read small files of unquantised tensors (versions 2 and 3, little-endian).

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: header, key-value pairs, tensor descriptions, then
the data, each tensor at its offset from a multiple of `general.alignment`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ksteer_vllm.errors import ProbeError

__all__ = ["MAGIC", "read_gguf"]

MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DTYPES = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}


class _Cursor:
    """Reads forward through the bytes; past the end is a ProbeError."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ProbeError(f"{self.path}: truncated: {count} bytes wanted at {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and depth < 4:
            inner, count = self.number("I"), self.number("Q")
            if count > len(self.data):
                raise ProbeError(f"{self.path}: truncated: {count} values in {len(self.data)} bytes")
            return [self.value(inner, depth + 1) for _ in range(count)]
        raise ProbeError(f"{self.path}: metadata of unknown type {kind}")


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors (in the shape numpy would give them, their own float dtype). Raises ProbeError."""
    try:
        cursor = _Cursor(path, path.read_bytes())
    except OSError as error:
        raise ProbeError(f"{path}: {error.strerror or error}") from None
    if cursor.take(4) != MAGIC:
        raise ProbeError(f"{path}: no GGUF file")
    version = cursor.number("I")
    if version not in (2, 3):
        raise ProbeError(f"{path}: GGUF version {version}; versions 2 and 3 (little-endian) can be read")
    num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    described = [_description(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ProbeError(f"{path}: general.alignment: {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in described:
        if kind not in _DTYPES or name in tensors:
            raise ProbeError(f"{path}: {name}: type {kind}; F32, F16, BF16 and F64 are read, once each")
        dtype, numel = _DTYPES[kind], 1
        for length in shape:
            numel *= length
        cursor.at = start + offset
        data = cursor.take(numel * dtype.itemsize)
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(shape)
    return metadata, tensors


def _description(cursor: _Cursor) -> tuple[str, list[int], int, int]:
    """name, shape (GGUF writes the fastest dimension first), type, offset."""
    name, num_dimensions = cursor.text(), cursor.number("I")
    if num_dimensions > 4:
        raise ProbeError(f"{cursor.path}: {name[:80]}: {num_dimensions} dimensions; at most 4 are allowed")
    shape = [cursor.number("Q") for _ in range(num_dimensions)]
    return name, shape[::-1], cursor.number("I"), cursor.number("Q")
