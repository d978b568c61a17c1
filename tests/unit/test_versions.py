"""Which versions a record names."""

from __future__ import annotations

import tomllib
from pathlib import Path

import torch

import ksteer_vllm
from ksteer_vllm.host.version import vllm_version
from ksteer_vllm.versions import VERSION, installed_version, installed_versions, running_versions

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_the_package_is_what_its_distribution_says() -> None:
    assert tomllib.loads(PROJECT.read_text())["project"]["version"] == VERSION == ksteer_vllm.__version__


def test_running_versions_are_those_of_the_imported_packages() -> None:
    assert running_versions() == {
        "ksteer": VERSION,
        "vllm": str(vllm_version()),
        "torch": torch.__version__,
    }


def test_what_is_not_installed_is_left_out() -> None:
    assert installed_version("no-such-distribution") is None
    assert installed_version("no-such-distribution", "torch") == torch.__version__
    assert list(installed_versions(["torch", "no-such-distribution", "pydantic"])) == ["torch", "pydantic"]
