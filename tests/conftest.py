"""How `pytest -n 2` (`make test`) shares out the tests: what shares engines stays in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALONE = ("kernels", "unit")
"""Directories whose conftest shares nothing that takes time to make: their files may be in either process."""


def scope_of(nodeid: str) -> str:
    """The folder of a test whose conftest makes engines or servers for all its files; else its file."""
    file = Path(nodeid.partition("::")[0])
    shares = (ROOT / file).with_name("conftest.py").exists() and file.parent.name not in ALONE
    return str(file.parent if shares else file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return ByFolder(config, log)
