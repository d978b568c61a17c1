"""How `pytest -n 2` (`make test`) shares out the tests: what shares engines stays in one process."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")  # how long a draw takes says nothing on a machine that does other things

ROOT = Path(__file__).resolve().parents[1]
ALONE = ("kernels", "unit")
"""Directories whose conftest shares nothing that takes time to make: their files may be in either process."""
SERVERS = ("faults", "live", "matrix_http", "metrics", "page", "presets", "robust")
"""Directories that start servers, one directory after the other: there is memory for a few at a time."""


def scope_of(nodeid: str) -> str:
    """What goes to one process: the folders of servers; a folder whose conftest makes engines or servers for
    all its files; any other file."""
    file = Path(nodeid.partition("::")[0])
    if file.parent.name in SERVERS:
        return "servers"
    shares = (ROOT / file).with_name("conftest.py").exists() and file.parent.name not in ALONE
    return str(file.parent if shares else file)


PARITY = os.environ.get("KSTEER_PARITY") == "1"
"""Whether this environment has the packages that tests marked `parity` compare with (packaging/parity.sh)."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `parity` run where the packages are, and nowhere else."""
    if PARITY:
        return
    elsewhere = [item for item in items if item.get_closest_marker("parity")]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]


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
    if nextitem is None or nextitem.path.parent != item.path.parent:
        from tests.server.http.serving import stop_all

        stop_all()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return ByFolder(config, log)
