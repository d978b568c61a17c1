"""Make Triton kernels runnable in this process if that is still possible, and say so to the tests.

Without a GPU the kernels run in Triton's interpreter, which must be chosen before triton is first imported:
`tests/conftest.py` imports this file before any test does. The choice holds during the tests of
`tests/kernels` alone, so programs started by others do not inherit it. When triton was imported earlier
without the interpreter, tests of the "triton" backend skip and `test_kernels_subprocess.py` runs them in a
process of their own.
"""

from __future__ import annotations

import os
import sys

import torch

ON_GPU = torch.cuda.is_available()


def _import_kernels() -> bool:
    """Whether the Triton kernels can run here."""
    if ON_GPU:
        return os.environ.get("TRITON_INTERPRET") != "1"
    before = os.environ.get("TRITON_INTERPRET")
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton.language as tl
        from triton.runtime.interpreter import InterpretedFunction

        import ksteer_kernels.rows.fused as rows
        import ksteer_kernels.steer.fused  # noqa: F401

        return isinstance(tl.max, InterpretedFunction) and isinstance(
            rows.token_rows_kernel, InterpretedFunction
        )
    finally:
        if before is None:
            os.environ.pop("TRITON_INTERPRET", None)
        else:
            os.environ["TRITON_INTERPRET"] = before


TRITON_RUNS = _import_kernels()
