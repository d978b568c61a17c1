"""Plain gradient steps on a CPU in one call: gradient.cpp, built when it is first needed.

A dozen torch calls cost more than their arithmetic on a decode batch. The C++ is compiled and cached by what
torch.compile uses on CPUs, so it needs a compiler, which vLLM's torch.compile on CPUs needs anyway. Without
one everything runs through torch.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ksteer_kernels.packed import CPUSlot
    from ksteer_kernels.steer.plan import PlannedGroup

logger = logging.getLogger("vllm.ksteer")

UP_TO_ROWS, UP_TO_ENTRIES = 64, 96 * 1024
"""With more rows, or entries of x, torch's GEMMs are as fast or faster: a prefill is theirs."""

_BLOCK = 32  # gradient.cpp: sizes are padded to multiples of it
_DTYPES = (torch.bfloat16, torch.float32)
# torch turns contraction to FMA off and, for its own vector classes, the loop vectoriser.
_FLAGS = ("-fno-fast-math", "-ffp-contract=fast", "-ftree-loop-vectorize")

Kernel = Callable[..., int]


@functools.cache
def gradient_kernel() -> Kernel | None:
    """The compiled kernel, or None where there is none; takes seconds the very first time on a machine."""
    try:
        return _build()
    except Exception as error:  # no compiler, no writable cache, another torch: every reason is as good
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("No native CPU kernel, steering runs through torch, which is slower: %s", reason)
        return None


def _build() -> Kernel:
    from torch._inductor.codecache import CppCodeCache

    folder = Path(__file__).parent
    products = (folder / "products.h").read_text().replace("#pragma once\n", "")
    source = (folder / "gradient.cpp").read_text().replace('#include "products.h"\n', products)
    # torch names the library after source and command, not after the machine that -march=native stands for.
    library = CppCodeCache.load(f"// For {_machine()}\n{source}", extra_flags=_FLAGS)
    kernel = library.ksteer_gradient
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    kernel.argtypes = (address, address, address, size, address, size, size, number, number)
    kernel.restype = number
    return kernel


def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return " ".join(features[:1]) or f"{platform.machine()} {platform.processor()}"


def edit_(hidden: Tensor, residual: Tensor | None, group: PlannedGroup, slot: CPUSlot) -> int | None:
    """Do the plain GRADIENT edit of a group in place; None where this kernel is not for it.

    Returns how many tokens' edits were dropped, because their activations or their edit were not finite.
    """
    rows, width = group.tokens.shape[0], hidden.shape[1]
    if rows > UP_TO_ROWS or rows * width > UP_TO_ENTRIES:
        return None
    if hidden.dtype not in _DTYPES or hidden.stride(1) != 1:
        return None
    if residual is not None and (residual.dtype != hidden.dtype or residual.stride(1) != 1):
        return None
    if hidden.device.type != "cpu" or slot.bias.dtype != torch.float32:
        return None
    kernel = gradient_kernel()
    if kernel is None:
        return None
    weights, tokens = slot.native, group.native
    dropped = kernel(
        weights.address,
        tokens.buffer_info()[0],
        hidden.data_ptr(),
        hidden.stride(0),
        None if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        width,
        hidden.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return None if dropped < 0 else dropped


class NativeSlot:
    """`Slot` of gradient.cpp and the tensors it points to."""

    def __init__(self, slot: CPUSlot) -> None:
        first, second, gram = slot.first.weight, slot.second.weight, slot.gram.weight
        if slot.up is not None:  # the kernel multiplies by G^T; otherwise G is symmetric
            gram = gram.T
        padded = [_padded(t) for t in (first, slot.bias, second, slot.matrix_bias, gram)]
        sizes = (padded[0].shape[1], padded[0].shape[0], padded[2].shape[0], second.shape[0])
        up = padded[0] if slot.up is None else _padded(slot.up)
        scale = None if slot.scale is None else _padded(slot.scale)
        self.kept = [*padded, up, scale]
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in self.kept]
        self.fields = array("q", [*sizes, *addresses])
        self.address = self.fields.buffer_info()[0]


def _padded(tensor: Tensor) -> Tensor:
    """The tensor itself where its sizes are multiples of _BLOCK, else a copy with zeros; contiguous."""
    sizes = [-(-size // _BLOCK) * _BLOCK for size in tensor.shape]
    if sizes == list(tensor.shape):
        return tensor.contiguous()
    padded = tensor.new_zeros(sizes)
    padded[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return padded


def native_group(group: PlannedGroup) -> array[int]:
    """`Group` of gradient.cpp; points to the group's tensors."""
    readouts = group.scaled
    assert all(table.is_contiguous() and table.dtype == torch.float32 for table in readouts)
    fields = array("q", (group.tokens.shape[0], len(readouts), readouts[0].stride(0)))
    fields.extend((group.tokens.data_ptr(), 0) if group.span is None else (0, group.span[0]))
    fields.extend([table.data_ptr() for table in readouts])
    return fields
