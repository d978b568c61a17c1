"""What all tests share: how processes divide them, which warnings are errors, what must not skip.

`make test` runs them with `pytest -n 4 --dist loadgroup`: tests of one group stay in one process, in order. A
group is a file, unless a test is marked `xdist_group` or asks for the fixture `serving`.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Generator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

gc.set_threshold(100_000)  # what torch, vLLM and the tests make mostly lives on: searching it costs more

if find_spec("triton"):
    from tests.support.engines import wants_v2_runner

    if not wants_v2_runner():
        import tests.support.interpreter  # noqa: F401  before any test imports triton

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")  # how long a draw takes says nothing on a machine that does other things

OURS = r"ksteer_(vllm|kernels)(\.|$)"
"""Warnings attributed to these modules are errors: what they say is for us to mend."""

PARITY = os.environ.get("KSTEER_PARITY") == "1"
"""Whether this environment has the packages that tests marked `parity` compare with (packaging/parity.sh)."""


@pytest.fixture(scope="session")
def serving() -> None:
    """Asked for by every fixture that starts a server.

    There is memory for a few servers at a time, so those of one part of the suite run in one process, one
    folder after the other.
    """


def group_of(item: pytest.Item) -> str:
    """What is to stay in one process with this test."""
    if "serving" in item.fixturenames:  # type: ignore[attr-defined]
        return f"servers-of-{item.path.relative_to(item.config.rootpath).parts[1]}"
    return item.path.stem


def _cost(item: pytest.Item) -> int:
    """Servers first and what starts nothing last: at the end there are only short groups to share out."""
    if "serving" in item.fixturenames:  # type: ignore[attr-defined]
        return 0
    return 2 if item.path.is_relative_to(item.config.rootpath / "tests" / "unit") else 1


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not PARITY and (elsewhere := [item for item in items if item.get_closest_marker("parity")]):
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    items.sort(key=_cost)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group_of(item)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """pytest forgets it again after the test. Its own option `filterwarnings` names single modules only."""
    warnings.filterwarnings("error", module=OURS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A parity test that skips has compared nothing: it fails."""
    report = yield
    if report.skipped and item.get_closest_marker("parity"):
        report.outcome = "failed"
        report.longrepr = f"a parity test must run, but was skipped: {report.longrepr}"
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """No server outlives the tests of its folder, though the fixtures of a session do."""
    module = sys.modules.get("testbed.serving")
    if module and (nextitem is None or nextitem.path.parent != item.path.parent):
        module.stop_all()
