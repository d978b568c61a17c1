"""Compile every Triton kernel for sm_90 without a GPU and print, as JSON, what each needs.

Run as a program with TRITON_INTERPRET unset. The launchers run with the compiler in place of the launch, so
what is compiled is what they would start: signature, tile sizes, warps and stages are not repeated here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ksteer_kernels import ProbeTables, ReportBuffers, RowTables, Workspace
from ksteer_kernels.rows import fused as rows
from ksteer_kernels.steer import fused as steer

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages")


def compile_launch(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What kernel[grid](*args, **kwargs) would compile on an H100, divisible sizes marked as such."""
    constants = {k: v for k, v in kwargs.items() if k not in OPTIONS}
    options = {k: v for k, v in kwargs.items() if k in OPTIONS}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, (param, value) in enumerate(zip(kernel.params, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[param.name] = POINTERS[value.dtype]
            divisible = True
        else:
            signature[param.name] = "i32"
            divisible = not param.do_not_specialize and value % 16 == 0
        if divisible:
            attributes[index,] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=TARGET, options=options)


def resources(compiled: Any) -> dict[str, int]:
    """Shared memory in bytes, registers per thread and spill bytes, as ptxas reports them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(compiled.asm["ptx"])
        ptxas = get_ptxas(TARGET.arch).path
        done = subprocess.run(
            [ptxas, "-v", "--gpu-name=sm_90a", str(source), "-o", f"{folder}/kernel.cubin"],
            check=True,
            capture_output=True,
            text=True,
        )
    report = done.stderr
    return {
        "shared": compiled.metadata.shared,
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),  # type: ignore[index]
        "spill_bytes": sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", report)),
        "wgmma": compiled.asm["ptx"].count("wgmma.mma_async"),
        "mma": compiled.asm["ptx"].count("mma.sync"),
    }


def compile_case(
    dtype: torch.dtype, width: int, num_tokens: int, hidden_size: int
) -> dict[str, dict[str, int]]:
    """Every kernel of one configuration, by name."""
    probes = ProbeTables.allocate(2, width, 8, hidden_size, dtype, "cpu")
    row_tables = RowTables.allocate(2, 4, width, 8, "cpu")
    workspace, reports = (
        Workspace.allocate(num_tokens, width, "cpu", 8),
        ReportBuffers.allocate(2, num_tokens, 8, "cpu"),
    )
    states = torch.zeros(num_tokens, hidden_size, dtype=dtype)
    token_row, gain = torch.zeros(1, num_tokens, dtype=torch.int32), torch.ones(1, num_tokens)
    found: dict[str, dict[str, int]] = {}

    def launch(kernel: JITFunction, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("grid", None)
        kwargs.pop("warmup", None)
        found[kernel.fn.__name__] = resources(compile_launch(kernel, args, kwargs))

    with patch.object(JITFunction, "run", launch):
        steer.steer_(states, states, token_row, gain, probes, row_tables, 1, workspace, reports)
        positions = torch.zeros(num_tokens, dtype=torch.int64)
        starts, requests = torch.zeros(3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
        rows.token_rows_(token_row, gain, positions, starts, requests, row_tables, num_tokens)
    return found


def main() -> None:
    hidden_size = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    report = {
        f"{str(dtype).removeprefix('torch.')} H={width} T={num_tokens}": compile_case(
            dtype, width, num_tokens, hidden_size
        )
        for dtype in (torch.bfloat16, torch.float32)
        for width in (256, 512)
        for num_tokens in (32, 2048)
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
