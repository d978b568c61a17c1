"""`ksteer fit`: labelled text -> an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.options import (
    Data,
    Dtype,
    GpuMemory,
    MaxModelLen,
    Model,
    clean_errors,
    given,
    quiet_vllm,
    wide_console,
)
from ksteer_vllm.methods import fits

__all__ = ["fit"]


def fit(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The probe folder to write.")],
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(fits())}.")] = "mlp",
    layer: Annotated[
        int | None, typer.Option(min=0, help="Decoder block; default: 60 % of the depth.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Labels to fit, a,b,c; default: all, sorted.")] = "",
    width: Annotated[
        int | None, typer.Option(min=1, max=4096, help="mlp: of both hidden layers; default: 256.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; early stopping may end sooner; mlp: 30.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0.0, help="Of AdamW; mlp: 0.01.")] = None,
    noise: Annotated[
        float | None, typer.Option(min=0.0, help="mlp: input noise, in standard deviations; default: 0.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="loreft, lorest: of each label's edit.")] = None,
    positions: Annotated[
        int | None, typer.Option(min=1, help="actadd: how many first positions; default: 4.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of all that is drawn.")] = 0,
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    gpu_memory_utilization: GpuMemory = None,
) -> None:
    """Fit a probe, or another method, to labelled text, on activations of the vLLM engine itself."""
    from ksteer_vllm.fit.data import read_rows
    from ksteer_vllm.fit.describe import metrics_tables
    from ksteer_vllm.fit.pipeline import fit_to_rows

    quiet_vllm()
    console = wide_console()
    with clean_errors():
        artifact = fit_to_rows(
            model,
            read_rows(data),
            method,
            labels=[label.strip() for label in labels.split(",") if label.strip()],
            layer=layer,
            options=given(
                width=width,
                epochs=epochs,
                weight_decay=weight_decay,
                noise=noise,
                rank=rank,
                positions=positions,
                seed=seed,
            ),
            engine_options=given(
                dtype=dtype, max_model_len=max_model_len, gpu_memory_utilization=gpu_memory_utilization
            ),
            console=console,
        )
        artifact.save(out)
    metadata = artifact.metadata
    for table in metrics_tables(metadata.metrics):
        console.print(table)
    kind = "probe" if method == "mlp" else method
    console.print(f"{kind} of layer {metadata.layer}, labels {', '.join(artifact.labels)}: {out}")
