"""The `ksteer` command, one file a subcommand."""

from __future__ import annotations

from typing import Annotated

import typer

import ksteer_vllm
from ksteer_vllm.cli.calibrate import calibrate
from ksteer_vllm.cli.condition import condition
from ksteer_vllm.cli.convert import convert
from ksteer_vllm.cli.demo import demo
from ksteer_vllm.cli.evaluate import evaluate
from ksteer_vllm.cli.fit import fit
from ksteer_vllm.cli.hub import pull, push
from ksteer_vllm.cli.inspect import inspect
from ksteer_vllm.cli.layers import layers
from ksteer_vllm.cli.model import model
from ksteer_vllm.cli.server import server
from ksteer_vllm.cli.verify import verify

__all__ = ["app"]

app = typer.Typer(
    help="Steering in vLLM: fit probes and vectors, look at them, run the demo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ksteer {ksteer_vllm.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Steering in vLLM: fit probes and vectors, look at them, run the demo."""


for command in (model, layers, fit, calibrate, condition, convert, inspect, demo, verify, push, pull):
    app.command()(command)
app.command("eval")(evaluate)
app.command("sweep", hidden=True)(calibrate)  # its name before 0.2
app.add_typer(server, name="server")
