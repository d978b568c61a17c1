"""steering-vectors: a SteeringVector (layer_activations, layer_type), as family vectors.

Checked against steering-vectors 0.12.2. The package cannot save by itself; people pickle or torch.save the
SteeringVector, or its `layer_activations` {layer: tensor [d]}. Its layers are 0-based decoder blocks and its
hook adds to the block's output, as ours: numbers are kept (a negative one counts from the end).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ksteer_vllm.convert.common import build, choose_labels, choose_layers
from ksteer_vllm.convert.options import Options
from ksteer_vllm.convert.unpickle import Record, names_in, read_pickle, tensor_of
from ksteer_vllm.errors import ProbeError, listing
from ksteer_vllm.probes.probe import Probe

__all__ = ["convert", "recognises"]

CLASS = "steering_vectors.steering_vector.SteeringVector"


def recognises(path: Path) -> bool:
    return path.is_file() and any(names_in(path, name) for name in ("steering_vectors.", "layer_activations"))


def convert(path: Path, options: Options) -> Probe:
    """Convert to a probe.

    Args:
        path: A pickle or torch.save file. It becomes one label, by default named after the file.
        options: The model, and what the source does not say.

    Raises:
        ProbeError: For a source that cannot be converted.
    """
    activations, notes = _activations(path, read_pickle(path, (CLASS,)))
    vectors = {}
    for number, value in activations.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise ProbeError(f"{path}: expected layer numbers, found {str(number)[:80]!r}")
        layer = number + options.model.num_layers if number < 0 else number
        tensor = tensor_of(path, value, f"layer {number}").squeeze()
        if tensor.ndim != 1 or layer in vectors:
            raise ProbeError(f"{path}: layer {number}: expected one vector, found {tuple(tensor.shape)}")
        vectors[layer] = tensor.float()
    layers, layer = choose_layers(path, options, list(vectors))
    lengths, wanted = sorted({len(vectors[index]) for index in layers}), options.model.hidden_size
    if lengths != [wanted]:
        raise ProbeError(f"{path}: vectors of length {listing(lengths)}, expected {wanted} (the hidden size)")
    return build(
        path,
        "steering-vectors",
        "vectors",
        {"vectors": torch.stack([vectors[index] for index in layers])[:, None, :]},
        options,
        labels=choose_labels(path, options, 1, [path.stem]),
        layer=layer,
        layers=layers,
        notes=notes,
        default_alpha={"add": 1.0},
    )


def _activations(path: Path, found: Any) -> tuple[dict[Any, Any], list[str]]:
    """layer -> tensor, of a SteeringVector, of a dict with its fields, or of the bare mapping."""
    fields = found.state if isinstance(found, Record) else found
    if not isinstance(fields, dict) or not fields:
        raise ProbeError(
            f"{path}: expected a SteeringVector or {{layer: tensor}}, found {type(found).__name__}"
        )
    if "layer_activations" not in fields:
        return fields, ["the file does not say which site it was made for; taken as the block's output"]
    kind, activations = fields.get("layer_type", "decoder_block"), fields["layer_activations"]
    if kind != "decoder_block":
        raise ProbeError(
            f"{path}: layer_type {str(kind)[:80]!r}; only 'decoder_block' (the block's output) can be steered"
        )
    if not isinstance(activations, dict):
        raise ProbeError(
            f"{path}: layer_activations: expected {{layer: tensor}}, found {type(activations).__name__}"
        )
    return activations, []
