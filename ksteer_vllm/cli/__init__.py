"""The `ksteer` command, one file per subcommand.

Importing it imports neither torch nor vLLM: a command imports what it runs when it runs.
"""

from __future__ import annotations

import gc
from typing import Annotated, Final

import typer

import ksteer_vllm
from ksteer_vllm.cli.calibrate import calibrate
from ksteer_vllm.cli.chat import chat
from ksteer_vllm.cli.condition import condition
from ksteer_vllm.cli.convert import convert
from ksteer_vllm.cli.demo import demo
from ksteer_vllm.cli.errors import OneLineErrors
from ksteer_vllm.cli.evaluate import evaluate
from ksteer_vllm.cli.fit import fit
from ksteer_vllm.cli.hub import pull, push
from ksteer_vllm.cli.inspect import inspect
from ksteer_vllm.cli.layers import layers
from ksteer_vllm.cli.model import model
from ksteer_vllm.cli.server import server
from ksteer_vllm.cli.verify import verify

__all__ = ["app"]

_OBJECTS: Final = 100_000
"""New objects after which Python searches the youngest for garbage, by default 700. What importing torch
and vLLM makes lives on, and searching it meanwhile takes a sixth of a command's start."""

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: its tables cut option names at 80 columns
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ksteer {ksteer_vllm.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Steer models in vLLM: fit, calibrate and evaluate probes, and manage those of running servers."""
    gc.set_threshold(_OBJECTS)


app.command()(fit)
app.command()(layers)
app.command()(calibrate)
app.command("sweep", hidden=True)(calibrate)  # what calibrate was called before
app.command("eval")(evaluate)
app.command()(chat)
app.command()(condition)
app.command()(inspect)
app.command()(convert)
app.command()(model)
app.command()(push)
app.command()(pull)
app.command()(verify)
app.add_typer(server, name="server")
app.command()(demo)
