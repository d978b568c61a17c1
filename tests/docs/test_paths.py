"""Modules and files that a text names exist."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec

import pytest

from tests.docs.blocks import ROOT, TEXTS

FOLDERS = "benchmarks|docs|examples|kernels|ksteer_vllm|packaging|testbed|tests"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)(?:::\w+)?`")
MODULE = re.compile(r"\b(ksteer_(?:vllm|kernels)(?:\.\w+)+)")
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")
"""The target of a link or an image, without its anchor; not an address."""
OTHERS = ("benchmarks/PEERS.md", "CHANGELOG.md")
"""They name files of other projects, and modules of older releases."""
FILE_ENDINGS = ("json", "md", "py", "yaml", "toml")


def texts_naming(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """(text, what it names)."""
    texts = [file for file in TEXTS if file not in OTHERS]
    return sorted({(file, name) for file in texts for name in pattern.findall((ROOT / file).read_text())})


@pytest.mark.parametrize(("file", "path"), texts_naming(PATH))
def test_paths_exist(file: str, path: str) -> None:
    there = ROOT / path
    assert (there.parent if "NAME" in there.name else there).exists(), f"{file} names {path}"


@pytest.mark.parametrize(("file", "name"), texts_naming(MODULE))
def test_modules_and_names_exist(file: str, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    if attribute not in FILE_ENDINGS:
        assert exists(module, attribute), f"{file} names {name}"


QUOTED = re.compile(r"`(ksteer_(?:vllm|kernels)(?:\.\w+)+)`")


def names_in_docstrings() -> list[tuple[str, str]]:
    """(file of the package, dotted name in backquotes)."""
    files = [*(ROOT / "ksteer_vllm").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    return sorted(
        {(str(file.relative_to(ROOT)), name) for file in files for name in QUOTED.findall(file.read_text())}
    )


def test_what_docstrings_name_exists() -> None:
    """A module, a name of one, or an attribute of a class."""
    lost = [(file, name) for file, name in names_in_docstrings() if not found(name)]
    assert lost == []


def found(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            there = find_spec(module) is not None
        except ModuleNotFoundError:
            there = False
        if there:
            value = import_module(module)
            for attribute in parts[end:]:
                fields = getattr(value, "model_fields", {}) | getattr(value, "__annotations__", {})
                if not hasattr(value, attribute) and attribute not in fields:
                    return False
                value = getattr(value, attribute, None)
            return True
    return False


def exists(module: str, name: str) -> bool:
    """Whether a dotted name is a module, or a public name of one."""
    if find_spec(module) is None:
        return False
    if hasattr(import_module(module), name):
        return True
    is_package = hasattr(import_module(module), "__path__")
    return is_package and find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("file", TEXTS)
def test_links_lead_to_files(file: str) -> None:
    for target in LINK.findall((ROOT / file).read_text()):
        assert (ROOT / file).parent.joinpath(target).exists(), f"{file} links to {target}"
