"""One bench on the shipped model, shared by the tests of the study core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import prepare_environment

prepare_environment()

from ksteer_vllm.bench.bench import Bench  # noqa: E402
from ksteer_vllm.bench.suite import Suite  # noqa: E402
from tests.workbench.bench.small_suite import ENGINE_OPTIONS, write_suite  # noqa: E402


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return write_suite(tmp_path_factory.mktemp("study") / "suite")


@pytest.fixture(scope="session")
def bench(suite: Suite) -> Iterator[Bench]:
    with Bench(
        suite.file.model,
        suite.paths,
        reader=suite.evaluation,
        engine_options=ENGINE_OPTIONS,
        max_tokens=40,
    ) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"
