"""Make Triton kernels runnable in this process if that is still possible, and say so to the tests.

Without a GPU the kernels run in Triton's interpreter, which must be chosen before triton is first imported.
The choice holds during the tests of this directory alone, so programs started by others do not inherit it.
When triton was imported earlier without the interpreter, tests of the "triton" backend skip here and
`test_kernels_subprocess.py` runs them in a process of their own.
"""

from __future__ import annotations

import os
import sys

import pytest
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


@pytest.fixture(autouse=True)
def _interpreter_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton imports more of itself at the first launch and looks at the choice again."""
    if TRITON_RUNS and not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def triton_runs() -> bool:
    return TRITON_RUNS


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every test with this argument runs on both backends."""
    if request.param == "triton" and not TRITON_RUNS:
        pytest.skip("triton was imported without its interpreter; covered by test_kernels_subprocess.py")
    return request.param


@pytest.fixture
def triton_device(triton_runs: bool) -> str:
    """Device for tests of Triton alone."""
    if not triton_runs:
        pytest.skip("triton was imported without its interpreter; covered by test_kernels_subprocess.py")
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture
def device(backend: str) -> str:
    return "cuda" if ON_GPU and backend == "triton" else "cpu"
