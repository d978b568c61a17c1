"""Every code block is checked by its language, or is marked as output (`text`)."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ksteer_vllm.cli import app
from ksteer_vllm.data.behaviours import read_behaviours
from ksteer_vllm.spec.presets import read_presets
from tests.docs.blocks import ROOT, TEXTS, Block, all_blocks, blocks
from tests.docs.commands import commands, option
from tests.server.http.parsing import serve_parser

BEHAVIOURS = blocks("yaml", containing="behaviours:")
LANGUAGES = {"python", "bash", "json", "yaml", "text"}
ANY_FLAGS = {"docker", "head", "kubectl"}
"""Commands of others, in which nothing is ours."""


def ids(found: list[Block]) -> dict[str, Any]:
    return {"argvalues": found, "ids": [block.name for block in found]}


def test_every_block_says_what_it_is() -> None:
    assert {block.name for block in all_blocks() if block.language not in LANGUAGES} == set()


@pytest.mark.parametrize("file", TEXTS)
def test_code_is_fenced_and_not_indented(file: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / file).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"\n\n    \S.*", text)


@pytest.mark.parametrize("block", **ids(blocks("python")))
def test_python_compiles(block: Block) -> None:
    tree = ast.parse(block.text)
    if "LLM(" in block.text or "KSteering(" in block.text:
        assert "__name__ == '__main__'" in ast.unparse(tree), (
            "an engine starts processes that import the program"
        )


@pytest.mark.parametrize("block", **ids(blocks("json")))
def test_specs_can_be_run_with_the_demo_probe(block: Block, registry_of: Callable[..., Any]) -> None:
    assert registry_of().admit(json.loads(block.text)).edits


@pytest.mark.parametrize("block", **ids(BEHAVIOURS))
def test_behaviours_can_be_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "behaviours.yaml"
    file.write_text(block.text)
    assert read_behaviours(file).names


@pytest.mark.parametrize("block", **ids([block for block in blocks("yaml") if block not in BEHAVIOURS]))
def test_presets_can_be_run_with_the_demo_probe(
    block: Block, registry_of: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "presets.yaml"
    file.write_text(block.text)
    presets = read_presets(file)
    assert presets
    registry_of(presets)


@pytest.mark.parametrize(
    "file", ["examples/presets.yaml", "examples/deployment/kubernetes/base/presets.yaml"]
)
def test_the_example_presets_can_be_run_with_the_demo_probe(
    file: str, registry_of: Callable[..., Any]
) -> None:
    registry_of(read_presets(ROOT / file))


@pytest.mark.parametrize("block", **ids(blocks("bash")))
@pytest.mark.usefixtures("reader")
def test_commands_parse(block: Block) -> None:
    found = list(commands(block.text))
    assert found
    for program, *arguments in found:
        if program not in ANY_FLAGS:
            CHECKS[program](arguments)


def our_command(arguments: list[str]) -> None:
    command, name = get_command(app), "ksteer"
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    assert command.make_context(name, list(arguments)).params


def vllm_command(arguments: list[str]) -> None:
    assert arguments[0] == "serve"
    serve_parser().parse_args(arguments[1:])


def make_target(arguments: list[str]) -> None:
    assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text()


def pip_extra(arguments: list[str]) -> None:
    (extras,) = re.findall(r"\.\[([\w,-]+)\]", " ".join(arguments))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


def python_module(arguments: list[str]) -> None:
    module = option(arguments, "-m")
    assert module is not None
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() or module == "pytest"


def curl_request(arguments: list[str]) -> None:
    body = option(arguments, "-d")
    assert body is None or isinstance(json.loads(body), dict)
    assert any("/v1/" in argument for argument in arguments)


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "curl": curl_request,
    "ksteer": our_command,
    "make": make_target,
    "pip": pip_extra,
    "python": python_module,
    "vllm": vllm_command,
}


def test_a_wrong_command_is_noticed() -> None:
    with pytest.raises(BaseException, match="no-such-option"):
        our_command(["fit", "MODEL", "DATA", "--out", "x", "--no-such-option"])
    assert list(commands("a b \\\n  c  # d ; e\nf 'g;h' | i ; j")) == [
        ["a", "b", "c"],
        ["f", "g;h"],
        ["i"],
        ["j"],
    ]
