"""`ksteer inspect`: what a probe is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.options import clean_errors, wide_console

__all__ = ["inspect"]


def inspect(folder: Annotated[Path, typer.Argument(help="A probe folder.")]) -> None:
    """Show a probe of any family: what it was fitted on, how it reads held-out text, what it weighs."""
    from ksteer_vllm.fit.describe import describe
    from ksteer_vllm.probes.probe import Probe

    with clean_errors():
        probe = Probe.load(folder)
    console = wide_console()
    for table in describe(probe):
        console.print(table)
