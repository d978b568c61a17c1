"""Options made from a model: what is on the command line, what the command is called with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from ksteer_vllm.cli.from_models import From, command


class Plan(BaseModel):
    """A model of every kind of field."""

    count: Annotated[int, Field(ge=1, le=9, description="How many.")] = 3
    share: Annotated[float | None, Field(gt=0, description="Which share.")] = None
    side: Annotated[Literal["left", "right"], Field(description="Which side.")] = "left"
    sizes: Annotated[tuple[int, ...], Field(description="Which sizes.")] = (1, 2)
    names: Annotated[tuple[str, ...], Field(description="Which names.")] = ()
    folder: Annotated[Path | None, Field(description="Where.")] = None
    fast: Annotated[bool, Field(description="Hurry.")] = False
    safe: Annotated[bool, Field(description="Take care.")] = True
    hidden: str = "no option"


SEEN: list[Any] = []
app = typer.Typer(rich_markup_mode=None)
SOURCE = From(Plan, leave_out=("hidden",), names={"names": "--name"}, repeated=("names",), open=("sizes",))


@app.command()
@command
def whole(place: Annotated[str, typer.Argument(help="A place.")], plan: Annotated[Plan, SOURCE]) -> None:
    """Take the whole plan."""
    SEEN.append((place, plan))


@app.command()
@command
def partial(fields: Annotated[dict[str, Any], SOURCE]) -> None:
    """Take what was given."""
    SEEN.append(fields)


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return SEEN.pop()


def test_defaults_are_the_models() -> None:
    assert run("whole", "here") == ("here", Plan())
    assert run("partial") == {}


def test_every_kind_of_value_is_read() -> None:
    line = "--count 4 --share 0.5 --side right --sizes 3,4 --name a --name b --folder x --fast --no-safe"
    wanted = {
        "count": 4, "share": 0.5, "side": "right", "sizes": (3, 4), "names": ("a", "b"),
        "folder": Path("x"), "fast": True, "safe": False,
    }  # fmt: skip
    assert run("whole", "here", *line.split()) == ("here", Plan(**wanted))
    assert run("partial", *line.split()) == wanted


def test_a_default_that_is_given_counts_as_given() -> None:
    assert run("partial", "--count", "3") == {"count": 3}
    assert run("whole", "here", "--count", "3")[1].model_fields_set == {"count"}


def test_help_has_description_bounds_and_default() -> None:
    shown = " ".join(CliRunner().invoke(app, ["whole", "--help"]).output.split())
    assert "--count INTEGER How many. From 1 to 9. [default: 3]" in shown
    assert "--share NUMBER Which share. Above 0." in shown
    assert "--side left|right Which side. [default: left]" in shown
    assert "--sizes INTEGER,... Which sizes. --name" in shown
    assert "--name NAME Which names." in shown
    assert "--fast Hurry." in shown
    assert "--safe / --no-safe Take care." in shown
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--count 10", "--count: expected a whole number from 1 to 9, got '10'"),
        ("--side up", "--side: expected left or right, got 'up'"),
        ("--sizes 1,x", "--sizes: expected numbers such as 1,2,3, got '1,x'"),
    ],
)
def test_a_value_out_of_range_names_option_value_and_what_is_allowed(line: str, says: str) -> None:
    result = CliRunner().invoke(app, ["partial", *line.split()])
    assert (result.exit_code, result.output) == (2, f"ksteer: {says}\n")


def test_a_field_without_a_description_is_no_option() -> None:
    def bare(plan: Annotated[Plan, From(Plan, only=("hidden",))]) -> None:
        """Not possible."""

    bare.__globals__["Plan"] = Plan
    with pytest.raises(TypeError, match="needs a description"):
        command(bare)
