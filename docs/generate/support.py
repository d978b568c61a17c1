"""The feature matrix, from the file its tests read."""

from tests.claims.matrix.table import table as matrix

__all__ = ["matrix"]
