"""repeng and llama.cpp control vectors (GGUF, architecture "controlvector"), as family vectors.

Checked against repeng 0.4.0. Tensors are named `direction.N`.
Layer numbers: repeng's N is a 0-based decoder block, its directions are taken from hidden_states[N + 1] and
its hook adds to the block's output; llama.cpp adds direction.N to the output of its 0-based layer N too (and
has no place for N = 0). That is our numbering, so N is kept. By default both programs cover blocks 1 to
num_layers - 1; `controlvector.layer_count` is the number of directions in repeng's files, not the model's.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ksteer_vllm.convert.common import GGUF_MAGIC, build, choose_labels, choose_layers
from ksteer_vllm.convert.options import Options
from ksteer_vllm.errors import ProbeError, listing
from ksteer_vllm.probes.probe import Probe

__all__ = ["convert", "recognises"]

ARCHITECTURE = "controlvector"


def recognises(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def convert(path: Path, options: Options) -> Probe:
    """Convert to a probe.

    Args:
        path: A control vector. It becomes one label, by default named after the file.
        options: The model, and what the source does not say.

    Raises:
        ProbeError: For a source that cannot be converted.
    """
    from ksteer_vllm.convert.gguf import read_gguf

    if not recognises(path):
        raise ProbeError(f"{path}: not a GGUF file")
    metadata, tensors = read_gguf(path)
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise ProbeError(f"{path}: architecture {str(architecture)[:80]!r}, expected {ARCHITECTURE!r}")
    directions = {_layer(path, name): tensor for name, tensor in tensors.items()}
    if not directions or len(directions) != len(tensors):
        raise ProbeError(f"{path}: expected a tensor direction.N for each layer, found {listing(tensors)}")
    wanted = (options.model.hidden_size,)
    for number, tensor in directions.items():
        if tuple(tensor.shape) != wanted:
            raise ProbeError(f"{path}: direction.{number}: shape {tuple(tensor.shape)}, expected {wanted}")
    layers, layer = choose_layers(path, options, list(directions))
    hint, model_type = str(metadata.get(f"{ARCHITECTURE}.model_hint", ""))[:80], options.model.model_type
    differs = f"the file was made for a model of type {hint!r}, the probe is for {model_type!r}"
    stacked = torch.stack([directions[index].float() for index in layers])
    return build(
        path,
        "repeng",
        "vectors",
        {"vectors": stacked[:, None, :]},
        options,
        labels=choose_labels(path, options, 1, [path.stem]),
        layer=layer,
        layers=layers,
        notes=[differs] if hint not in ("", model_type) else [],
        default_alpha={"add": 1.0},
        training={"model_hint": hint},
    )


def _layer(path: Path, name: str) -> int:
    number = name.removeprefix("direction.")
    if number == name or not number.isascii() or not number.isdigit() or len(number) > 5:
        raise ProbeError(f"{path}: tensor {name[:80]!r}; expected direction.N only, N a layer number")
    return int(number)
