"""What depends on the model runner, once more on vLLM's V2 runner, which GPUs run by default.

On a CPU it runs with its Triton kernels in the interpreter, which has to be chosen before vllm is imported,
so the tests run in one process of their own (`tests.support.engines.prepare_environment`). The interpreter
is slow, so what happens before a runner (keys of cache blocks, several completions of a request) is left out;
the whole suite can be run so with `VLLM_USE_V2_MODEL_RUNNER=1 pytest tests/engine`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from packaging.version import Version

from ksteer_vllm.host.version import vllm_version
from tests.support.engines import wants_v2_runner
from tests.support.programs import ROOT

TESTS = {
    "test_parity_with_transformers.py": ["test_engine_equals_transformers_with_hooks[llama]"],
    "test_mixed_batches.py": [
        "test_plain_requests_of_a_steered_batch_equal_a_plain_engine_bit_for_bit",
        "test_rows_are_free_again_after_their_requests",
    ],
    "test_methods.py": ["test_every_method_in_one_batch_equals_transformers_with_hooks"],
    "test_reports.py": [
        "test_a_report_says_what_transformers_computes",
        "test_only_who_asks_gets_one_and_asking_changes_nothing",
        "test_a_batch_of_reports_equals_each_alone",
        "test_chunked_prefill_and_scheduling_ahead[async_scheduling]",
        "test_preempted_requests_are_not_counted_twice[async_scheduling]",
        "test_aborted_requests_leave_no_records",
    ],
    "test_scheduling.py": [
        "test_chunked_prefill[async_scheduling]",
        "test_forced_preemption[async_scheduling]",
        "test_aborts_leave_the_other_requests_alone",
        "test_steered_and_plain_in_one_engine_step_by_step",
    ],
    "test_prefix_cache.py": [
        "test_specs_that_do_the_same_share_blocks_where_their_windows_agree",
        "test_turn_two_of_a_chat_equals_a_cold_engine[generation]",
    ],
    "test_triton_backend.py": ["test_both_backends_report_the_same"],
    "test_v2_runner.py": ["test_the_engine_runs_the_v2_runner"],
}

QUIET = ["-q", "-x", "--tb=short", "--show-capture=no", "--disable-warnings"]


@pytest.mark.slow
@pytest.mark.skipif(wants_v2_runner(), reason="this process is the one that runs the tests")
def test_the_suite_passes_on_the_v2_runner() -> None:
    chosen = [f"tests/engine/{file}::{name}" for file, names in TESTS.items() for name in names]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *QUIET, *chosen],
        cwd=ROOT,
        env={**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    passed, skipped = (re.search(rf"(\d+) {what}", run.stdout) for what in ("passed", "skipped"))
    assert passed
    assert int(passed[1]) >= len(chosen) - 1, run.stdout
    assert skipped is None or vllm_version() < Version("0.32"), run.stdout  # whose sampling does not run


@pytest.mark.skipif(not wants_v2_runner(), reason="for the process that runs the tests")
def test_the_engine_runs_the_v2_runner(engine: object, plain_engine: object) -> None:
    from tests.support.engines import worker

    steered, plain = worker(engine).model_runner, worker(plain_engine).model_runner
    assert type(steered).__mro__[1].__module__ == "vllm.v1.worker.gpu.model_runner"
    assert type(steered.model_state).__name__ == f"Steered{type(plain.model_state).__name__}"
    assert isinstance(steered.model_state, type(plain.model_state))
    assert not hasattr(plain.model_state, "ksteer")
