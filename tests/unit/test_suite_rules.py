"""What tests/conftest.py does for every test, seen on small suites that are run with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.programs import ROOT

WARNINGS = """
import types

import pytest


@pytest.mark.parametrize("name", ["ksteer_vllm", "ksteer_vllm.fit.train", "ksteer_kernels.rows"])
def test_ours(name):
    warn_from(name)


@pytest.mark.parametrize("name", ["ksteer_vllm_of_others", "torch"])
def test_others(name):
    warn_from(name)


def warn_from(name):
    module = types.ModuleType(name)
    exec("import warnings\\ndef warn(): warnings.warn('old', DeprecationWarning)", vars(module))
    module.warn()
"""

SKIPS = """
import pytest


@pytest.mark.parity
def test_it():
    pytest.importorskip("not_installed_anywhere")
"""

SERVES = """
import os
from pathlib import Path


def test_with_a_server(serving):
    Path(__file__).with_suffix(".process").write_text(os.environ["PYTEST_XDIST_WORKER"])


def test_without():
    pass
"""


def outcome(folder: Path, *arguments: str, **environment: str) -> str:
    """What pytest says of the tests in `folder`, run with our conftest."""
    own = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    ours = ("-p", "tests.conftest", "-p", "xdist.plugin", "-c", os.devnull, "-o", "markers=parity")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *ours, "--rootdir", str(folder), *arguments, str(folder)],
        env={**inherited, **own, **environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    return run.stdout


def test_a_warning_of_our_own_modules_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_warnings.py").write_text(WARNINGS)
    said = outcome(tmp_path, "-ra")
    assert "3 failed, 2 passed" in said, said
    assert said.count("test_warnings.py::test_ours[ksteer_") == 3, said


def test_a_parity_test_that_skips_fails(tmp_path: Path) -> None:
    (tmp_path / "test_parity.py").write_text(SKIPS)
    assert "1 failed" in outcome(tmp_path, KSTEER_PARITY="1")
    assert "1 deselected" in outcome(tmp_path, KSTEER_PARITY="0")


def test_tests_with_servers_stay_in_one_process(tmp_path: Path) -> None:
    """pytest 9.2 with pytest-xdist 3.8 forgets the groups without a word: this is how it is noticed."""
    part = tmp_path / "tests" / "server"
    for name in ("live", "presets"):
        (part / name).mkdir(parents=True)
        (part / name / f"test_{name}.py").write_text(SERVES)
    said = outcome(tmp_path, "-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder")
    assert "4 passed" in said, said
    processes = {file.read_text() for file in part.glob("*/*.process")}
    assert len(processes) == 1, said
