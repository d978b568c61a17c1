"""GGUF files of unquantised tensors, read with the package `gguf` (its extra is `workbench`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from torch import Tensor

from ksteer_vllm.errors import ProbeError

__all__ = ["read_gguf"]

_DTYPES = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


class _Bounded(GGUFReader):
    """A reader that stops where the file ends.

    The package's own reader carries on past the end: a file that claims 2^60 values would keep it busy for
    ever.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **named: Any) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise EOFError(f"truncated: its contents reach to byte {end} of {len(self.data)}")
        return super()._get(offset, dtype, count, *rest, **named)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a whole GGUF file that starts with the magic number.

    Args:
        path: of versions 2 or 3.

    Returns:
        The metadata by key, and the tensors by name, in the shape numpy would give them and their own dtype.

    Raises:
        ProbeError: the file cannot be read, is damaged, or holds quantised tensors.
    """
    try:
        reader = _Bounded(path)
        metadata = {
            key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
        }
        return metadata, {found.name: _tensor(found) for found in reader.tensors}
    except EOFError as error:
        raise ProbeError(f"{path}: {error}") from None
    except OSError as error:
        raise ProbeError(f"{path}: {error.strerror or error}") from None
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ProbeError(f"{path}: not a GGUF file that can be read: {str(error)[:200]}") from None


def _tensor(found: Any) -> Tensor:
    dtype = _DTYPES.get(found.tensor_type)
    if dtype is None:
        raise ValueError(
            f"{found.name[:80]}: type {found.tensor_type.name}; only F32, F16, BF16 and F64 can be read"
        )
    native = found.data.astype(found.data.dtype.newbyteorder("="))  # a copy: the file may go
    return torch.from_numpy(native).view(dtype)
