"""Every row of the matrix names tests that exist, and docs/support-matrix.md shows the matrix as it is."""

from __future__ import annotations

import ast

import pytest

from tests.claims.matrix.table import ROOT, Row, rows, table


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.feature)
def test_the_tests_of_a_row_exist(row: Row) -> None:
    for test in row.tests:
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_features_are_named_once() -> None:
    names = [row.feature for row in rows()]
    assert len(names) == len(set(names))
    assert all("|" not in row.feature + row.note for row in rows())


def test_the_support_page_shows_the_matrix() -> None:
    """`python -m docs.generate` puts it there."""
    assert table() in (ROOT / "docs" / "support-matrix.md").read_text()
