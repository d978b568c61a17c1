"""Both backends, where the Triton kernels can run in this process (`tests/support/interpreter.py`)."""

from __future__ import annotations

import pytest

from tests.support.interpreter import ON_GPU, TRITON_RUNS


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
