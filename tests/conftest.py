"""How `pytest -n 2` (`make test`) shares out the tests: what shares engines stays in one process."""

from __future__ import annotations

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
