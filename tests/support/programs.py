"""Running a test program in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def start_program(module: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """`python -m MODULE ARGUMENTS` at the project's root."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(program: subprocess.Popen[str], timeout: float = 300) -> Any:
    """The JSON after RESULT on its standard output; its errors where there is none."""
    out, errors = program.communicate(timeout=timeout)
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    assert program.returncode == 0, f"exit status {program.returncode}:\n{errors[-6000:]}"
    assert lines, f"no result:\n{out[-3000:]}\n{errors[-3000:]}"
    return json.loads(lines[-1].removeprefix("RESULT "))
