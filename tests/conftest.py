"""How `pytest -n 2 --dist loadgroup` (`make test`) shares out the tests: what shares engines stays in one."""

from __future__ import annotations

import pytest

ALONE = ("kernels", "unit")
"""Directories whose conftest shares nothing that takes time to make: their files may be in either process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent
        together = (folder / "conftest.py").exists() and folder.name not in ALONE
        item.add_marker(pytest.mark.xdist_group(folder.name if together else item.path.stem))
