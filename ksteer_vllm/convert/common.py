"""What every source shares: the caller's options, layer and label choices, and the finished probe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ksteer_vllm.convert.options import Options
from ksteer_vllm.errors import ProbeError, first_problem, listing
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe

__all__ = ["GGUF_MAGIC", "build", "choose_labels", "choose_layers", "first_line", "read_json", "read_tensors"]

GGUF_MAGIC = b"GGUF"
"""What a GGUF file begins with."""


def build(
    path: Path,
    source: str,
    family: str,
    tensors: Mapping[str, Tensor],
    options: Options,
    *,
    labels: Sequence[str],
    layer: int,
    layers: Sequence[int] = (),
    notes: Sequence[str] = (),
    **metadata: Any,
) -> Probe:
    """A checked probe that records its source; `tensors` as the family requires, of any dtype.

    layers: with more than one, the tensors' first dimension; a single one has no dimension of its own, so
    that its probe can steer any layer. notes: what the user should know, kept in `training`.
    """
    training = {"converted_from": source, "file": path.name, **({"notes": list(notes)} if notes else {})}
    training |= metadata.pop("training", {})
    if len(layers) == 1:
        tensors = {name: tensor[0] for name, tensor in tensors.items()}
    try:
        described = ProbeMetadata(
            family=family,
            labels=tuple(labels),
            layer=layer,
            layers=tuple(layers) if len(layers) > 1 else (),
            model=options.model,
            training=training,
            **metadata,
        )
        plain = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
        return Probe(described, plain)
    except ValidationError as error:
        raise ProbeError(f"{path}: {first_problem(error)}") from None
    except ProbeError as error:
        raise ProbeError(f"{path}: {error}") from None


def choose_labels(path: Path, options: Options, count: int, default: Sequence[str]) -> tuple[str, ...]:
    """The caller's labels, else the source's.

    Args:
        path: The source, for messages.
        options: The caller's.
        count: How many labels the tensors have.
        default: The labels that the source names; may be empty.

    Raises:
        ProbeError: If there are none, or not `count`.
    """
    labels = options.labels or tuple(default)
    if len(labels) != count:
        given = f"got {len(labels)}: {listing(labels)}" if labels else "the file has no names; give --labels"
        raise ProbeError(f"{path}: labels: expected {count}, {given}")
    return labels


def choose_layers(path: Path, options: Options, found: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The layers to keep, ascending, and the one steered by default: the caller's, else the middle one.

    Args:
        path: The source, for messages.
        options: The caller's.
        found: The layers that the source has.

    Raises:
        ProbeError: For layers that the source or the model does not have, or that the source has twice.
    """
    available = sorted(set(found))
    if len(available) != len(found) or not available:
        raise ProbeError(f"{path}: expected distinct layers, found {listing(found)}")
    absent = sorted({*options.layers} - {*available})
    if absent:
        raise ProbeError(f"{path}: no layer {listing(absent)}; it has {listing(available, 200)}")
    kept = tuple(sorted(set(options.layers))) or tuple(available)
    beyond = [layer for layer in kept if not 0 <= layer < options.model.num_layers]
    if beyond:
        raise ProbeError(
            f"{path}: layer {listing(beyond)} of a model with {options.model.num_layers} layers; "
            f"choose with --layers"
        )
    layer = options.layer if options.layer is not None else kept[len(kept) // 2]
    if layer not in kept:
        raise ProbeError(f"{path}: no layer {layer}; it has {listing(kept, 200)}")
    return kept, layer


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ProbeError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProbeError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path}: not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ProbeError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A torch.saved mapping of names to tensors, read by the weights-only loader. Raises ProbeError."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ProbeError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged or hostile file can fail anywhere inside the loader
        raise ProbeError(
            f"{path}: expected tensors saved with torch.save and nothing else: {first_line(error)}"
        ) from None
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ProbeError(f"{path}: expected a mapping of names to tensors, found {type(value).__name__}")
    return {str(name): tensor for name, tensor in value.items()}


def first_line(error: Exception) -> str:
    """What went wrong inside a loader, in one line."""
    line = (str(error).strip().splitlines() or [""])[0]
    if line.startswith("Weights only load failed"):  # torch goes on to advise the unsafe loader
        return "it holds more than tensors, or is damaged"
    return f"{type(error).__name__}: {line}"[:200]
