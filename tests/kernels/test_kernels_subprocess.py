"""The whole directory again in a process of its own, should this one have imported triton too early."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_backends_in_a_fresh_process(triton_runs):
    if triton_runs:
        pytest.skip("the Triton kernels run in this process")
    environment = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton or ops or prefill",
         str(Path(__file__).parent)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_torch_alone_is_enough():
    """Importing the package and steering on the CPU does not import triton or vllm."""
    code = (
        "import sys, torch, ksteer_kernels as k;"
        "p = k.ProbeTables.allocate(1, 4, 2, 8, torch.float32, 'cpu');"
        "r = k.RowTables.allocate(1, 1, 4, 2, 'cpu');"
        "k.steer_(torch.zeros(2, 8), None, torch.zeros(2, dtype=torch.int32), p, r, 0, backend='torch');"
        "assert not {'triton', 'vllm'} & set(sys.modules), 'imported too much'"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
