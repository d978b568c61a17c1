"""`ksteer convert`: turn what another package saved into a probe."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ksteer_vllm.cli.from_models import command
from ksteer_vllm.errors import ProbeError, UsageError

if TYPE_CHECKING:
    from ksteer_vllm.models import ModelIdentity
    from ksteer_vllm.probes.probe import Probe

__all__ = ["Format", "convert"]


class Format(StrEnum):
    """A source format, or `auto` to detect it from the contents."""

    AUTO = "auto"
    K_STEERING = "k-steering"
    STEERING_VECTORS = "steering-vectors"
    REPENG = "repeng"
    PYREFT = "pyreft"
    SAELENS = "saelens"


@command
def convert(
    source: Annotated[Path, typer.Argument(help="A file or folder saved by another steering package.")],
    out: Annotated[Path, typer.Option(help="The probe folder to write.")],
    format: Annotated[
        Format, typer.Option(help="Format of SOURCE; auto detects it from the contents.")
    ] = Format.AUTO,
    model: Annotated[
        str, typer.Option(help="The model the probe is for: a folder, or a name on the hub.")
    ] = "",
    model_type: Annotated[
        str, typer.Option(help="Instead of --model, with --hidden-size and --num-layers: its model_type.")
    ] = "",
    hidden_size: Annotated[
        int | None, typer.Option(min=1, help="Instead of --model: the model's hidden size.")
    ] = None,
    num_layers: Annotated[
        int | None, typer.Option(min=1, help="Instead of --model: the model's number of decoder blocks.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            min=0, help="The decoder block, if SOURCE does not name it; otherwise the probe's default layer."
        ),
    ] = None,
    layers: Annotated[
        str,
        typer.Option(metavar="RANGE,...", help="Keep only these layers of SOURCE, such as 10-14,20."),
    ] = "",
    labels: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="Names of the labels; default: those in SOURCE, or its file name."
        ),
    ] = "",
    features: Annotated[
        str, typer.Option(metavar="RANGE,...", help="For saelens: the features to keep, such as 12,57.")
    ] = "",
) -> None:
    """Convert another package's file or folder to a probe.

    No code in the source is run.
    """
    from ksteer_vllm.convert import Options
    from ksteer_vllm.convert import convert as convert_source

    options = Options(
        model=_identity(model, model_type, hidden_size, num_layers),
        labels=tuple(label.strip() for label in labels.split(",") if label.strip()),
        layer=layer,
        layers=_numbers("--layers", layers),
        features=_numbers("--features", features),
    )
    probe = convert_source(source, options, format.value)
    try:
        probe.save(out)
    except OSError as error:
        raise ProbeError(f"{out}: {error.strerror or error}") from None
    for note in probe.metadata.training.get("notes", ()):
        typer.echo(f"note: {note}", err=True)
    typer.echo(_summary(probe, out))


def _summary(probe: Probe, out: Path) -> str:
    metadata = probe.metadata
    where = f"layers {', '.join(map(str, metadata.layers))}" if metadata.layers else f"layer {metadata.layer}"
    source = metadata.training["converted_from"]
    return f"{metadata.family} of {where}, labels {', '.join(metadata.labels)}, from {source}: {out}"


def _identity(model: str, model_type: str, hidden_size: int | None, num_layers: int | None) -> ModelIdentity:
    """The model that was named, as vLLM reads its configuration, or described. Raises UsageError."""
    from ksteer_vllm.models import ModelIdentity

    described = (model_type, hidden_size, num_layers)
    if model and any(described):
        raise UsageError(
            "--model: give either --model alone, or --model-type, --hidden-size and --num-layers"
        )
    if not model:
        if not model_type or hidden_size is None or num_layers is None:
            raise UsageError("--model: required, or all of --model-type, --hidden-size and --num-layers")
        return ModelIdentity(
            name=model_type, model_type=model_type, hidden_size=hidden_size, num_layers=num_layers
        )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from ksteer_vllm.bench.engines import model_of

    try:
        return model_of(model)
    except UsageError as error:
        raise UsageError(f"--{error}") from None


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """`12,57` or `10-14,20` as numbers. Raises UsageError."""
    numbers: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 20:
            raise UsageError(f"{option}: {part[:80]!r}; expected numbers and ranges, such as 10-14,20")
        low, high = int(first), int(last or first)
        if not low <= high <= low + 10_000:
            raise UsageError(f"{option}: {part!r}: a range must go up, by at most 10000")
        numbers.extend(range(low, high + 1))
    return tuple(numbers)
