"""Patches as data, applied by call and never by import."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ksteer_vllm.errors import HostVersionError
from ksteer_vllm.host.version import TESTED_RANGE

__all__ = ["Patch", "apply", "missing"]

_MARK = "__ksteer_patch__"


@dataclass(frozen=True)
class Patch:
    """One replaced symbol of vLLM; two patches of the same symbol wrap one another, the later one outermost.

    targets: "module:attribute.path" candidates, one per spelling in the tested range; every one whose
    module exists is patched, and at least one must be there. wrap: original -> replacement.
    """

    targets: tuple[str, ...]
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    why: str
    delete_when: str


def apply(patches: Iterable[Patch]) -> None:
    """Replace every symbol of the ledger, once per patch. Raises HostVersionError naming the missing ones."""
    patches = list(patches)
    absent = missing(patches)
    if absent:
        raise HostVersionError(
            "this vLLM lacks what ksteer-vllm relies on: "
            + "; ".join(absent)
            + f". Tested with vLLM {TESTED_RANGE}."
        )
    for patch in patches:
        for target in patch.targets:
            found = _find(target)
            if found is not None:
                _replace(*found, patch.wrap)


def missing(patches: Iterable[Patch]) -> list[str]:
    """The patches none of whose targets exist here, as text."""
    return [" or ".join(p.targets) for p in patches if all(_find(target) is None for target in p.targets)]


def _find(target: str) -> tuple[Any, str] | None:
    """(owner, attribute name), or None if there is no such symbol."""
    module_name, _, path = target.partition(":")
    try:
        if find_spec(module_name) is None:
            return None
    except ModuleNotFoundError:
        return None
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, None)
    return (owner, name) if owner is not None and name in vars(owner) else None


def _replace(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    raw = vars(owner)[name]
    function = raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw
    applied: tuple[Any, ...] = getattr(function, _MARK, ())
    if wrap in applied:
        return
    replacement = functools.wraps(function)(wrap(function))
    setattr(replacement, _MARK, (*applied, wrap))
    setattr(
        owner, name, type(raw)(replacement) if isinstance(raw, (staticmethod, classmethod)) else replacement
    )
