"""The same tests on vLLM's V2 model runner, which GPUs run by default.

On a CPU it runs with its Triton kernels in the interpreter, which has to be chosen before vllm is imported,
so the tests run in one process of their own (`tests.support.engines.prepare_environment`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.engines import wants_v2_runner
from tests.support.programs import ROOT

FILES = [
    "test_parity_with_transformers.py",
    "test_mixed_batches.py",
    "test_methods.py",
    "test_reports.py",
    "test_scheduling.py",
    "test_prefix_cache.py",
    "test_request_parameters.py",
    "test_triton_backend.py",
    "test_v2_runner.py",
]


QUIET = ["-q", "-x", "--tb=short", "--show-capture=no", "--disable-warnings"]


@pytest.mark.slow
@pytest.mark.skipif(wants_v2_runner(), reason="this process is the one that runs the tests")
def test_the_suite_passes_on_the_v2_runner() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *QUIET, *(f"tests/engine/{name}" for name in FILES)],
        cwd=ROOT,
        env={**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert run.returncode == 0, run.stdout[-8000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed
    assert int(passed[1]) > 50


@pytest.mark.skipif(not wants_v2_runner(), reason="for the process that runs the tests")
def test_the_engine_runs_the_v2_runner(engine: object, plain_engine: object) -> None:
    from tests.support.engines import worker

    steered, plain = worker(engine).model_runner, worker(plain_engine).model_runner
    assert type(steered).__mro__[1].__module__ == "vllm.v1.worker.gpu.model_runner"
    assert type(steered.model_state).__name__ == f"Steered{type(plain.model_state).__name__}"
    assert isinstance(steered.model_state, type(plain.model_state))
    assert not hasattr(plain.model_state, "ksteer")
