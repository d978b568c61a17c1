"""Nothing here starts an engine but the tests that say so."""

from __future__ import annotations

from tests.support.engines import prepare_environment

prepare_environment()
