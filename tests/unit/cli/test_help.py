"""Every help text: readable at 80 columns, in whole sentences; and the tools around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ksteer_vllm.cli import app

COLUMNS = 80
OF_TYPER = {"help", "install_completion", "show_completion"}


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, by the words that call it."""
    yield words, command
    for name, found in getattr(command, "commands", {}).items():
        yield from commands(found, (*words, name))


EVERY = dict(commands(typer.main.get_command(app)))
BY_WORDS = pytest.mark.parametrize("words", EVERY, ids=lambda words: " ".join(words) or "ksteer")


@BY_WORDS
def test_is_readable_at_80_columns(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": str(COLUMNS)})
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert "…" not in shown.output
    assert not [line for line in lines if line.endswith("...") and not line.endswith("COMMAND [ARGS]...")]
    for option in named(EVERY[words]):
        assert option in shown.output, f"{option} is cut"


@BY_WORDS
def test_says_what_every_option_does_in_a_sentence(words: tuple[str, ...]) -> None:
    command = EVERY[words]
    assert command.help.strip().endswith((".", ". "))
    for parameter in command.params:
        if parameter.name in OF_TYPER:
            continue
        text = (parameter.help or "").strip()
        assert text.endswith("."), f"{parameter.name}: {text!r}"
        assert text[0].isupper(), f"{parameter.name}: {text!r}"


@BY_WORDS
def test_h_is_help(words: tuple[str, ...]) -> None:
    runner = CliRunner()
    assert runner.invoke(app, [*words, "-h"]).output == runner.invoke(app, [*words, "--help"]).output


def test_the_shell_can_complete_it() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("frobnicate", "frobnicate"),
        ("fit model data", "--out"),
        ("fit model data --out x --wdith 3", "--wdith"),
        ("convert a --out b --layer one", "--layer"),
        ("server load", "NAME"),
        ("calibrate suite --strengths 65", "--strengths: expected a whole number from 2 to 64, got '65'"),
        ("calibrate suite --budget 0", "--budget: expected a number above 0, at most 1, got '0'"),
        ("calibrate suite --metric beauty", "--metric: expected judge or propensity, got 'beauty'"),
        ("calibrate suite --sizes one", "--sizes: expected numbers such as 1,2,3, got 'one'"),
        ("fit model data --out x --width 0", "--width: expected a whole number from 1 to 4096, got '0'"),
        ("fit model data --out x --layer x", "--layer: expected a whole number at least 0, got 'x'"),
        ("layers model data --out x --strengths 0,1", "--strengths: expected numbers above 0 such as"),
        ("eval suite --judge-timeout soon", "--judge-timeout: expected a number at least 0.1, got 'soon'"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(arguments: str, says: str) -> None:
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 2
    assert result.output.startswith("ksteer: ")
    assert says in result.output
    assert len(result.output.splitlines()) == 1


def named(command: Any) -> list[str]:
    """The options of a command that its help shows."""
    return [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
