"""`ksteer inspect`: show what is in a probe folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.from_models import command
from ksteer_vllm.cli.options import wide_console

__all__ = ["inspect"]


@command
def inspect(folder: Annotated[Path, typer.Argument(help="A probe folder.")]) -> None:
    """Show a probe's origin, held-out metrics and norms.

    The digest is verified. Needs neither torch nor vLLM.
    """
    from ksteer_vllm.fit.describe import describe

    console = wide_console()
    for table in describe(folder):
        console.print(table)
