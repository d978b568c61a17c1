"""pyreft: a folder of LoReFT interventions, as family loreft.  x' = x + R^T (W x + b - R x)

Checked against pyreft 0.1.0 (pyvene 0.1.8). The folder has `config.json` and, for each intervention,
`intkey_layer_<L>_comp_block_output_unit_pos_nunit_1#0.bin` (older versions write dots for underscores): the
state dict of LoreftIntervention, which holds `weight` [r, d] and `bias` [r] of learned_source (W, b) and
`rotate_layer` [d, r], the orthogonal matrix itself, not its parametrisation, with orthonormal **columns**: R
is its transpose. L is a 0-based decoder block and block_output its output: numbers are kept.

Two things the checkpoint does not record: act_fn (linear unless chosen otherwise in Python; a configuration
that names another is refused), and the prompt positions it was trained to edit (a request's where clause).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ksteer_vllm.convert.common import build, choose_labels, choose_layers, read_json, read_tensors
from ksteer_vllm.convert.options import Options
from ksteer_vllm.errors import ProbeError, listing
from ksteer_vllm.probes.probe import Probe

__all__ = ["convert", "recognises"]

_END = r"[._]unit[._](?P<unit>.+)[._]nunit[._](?P<n>\d+)#\d+\.bin"
_KEY = re.compile(r"intkey_layer[._](?P<layer>\d{1,5})[._]comp[._](?P<site>.+)" + _END)
_PATH_KEY = re.compile(r"intkey_comp_(?P<site>(?:\w+_)?(?:layers|h)\[(?P<layer>\d{1,5})\]_output)" + _END)
_TENSORS = {"weight", "bias", "rotate_layer"}
ORTHONORMAL_WITHIN = 0.05
"""Largest |R R^T - I| allowed: bfloat16 rounding of unit rows stays below it."""


def recognises(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").exists() and any(path.glob("intkey_*.bin"))


def convert(path: Path, options: Options) -> Probe:
    """Convert to a probe.

    Args:
        path: The folder that pyreft's `save` wrote.
        options: The model, and what the source does not say.

    Raises:
        ProbeError: For a source that cannot be converted.
    """
    config = read_json(path / "config.json")
    _check_config(path / "config.json", config)
    files = _files(path)
    layers, layer = choose_layers(path, options, list(files))
    parts = [_intervention(files[index], options.model.hidden_size) for index in layers]
    ranks = sorted({len(part["bias"]) for part in parts})
    if len(ranks) > 1:
        raise ProbeError(f"{path}: layers of ranks {listing(ranks)}; convert them apart with --layers")
    return build(
        path,
        "pyreft",
        "loreft",
        {name: torch.stack([part[name] for part in parts])[:, None] for name in parts[0]},
        options,
        labels=choose_labels(path, options, 1, ["loreft"]),
        layer=layer,
        layers=layers,
        notes=[
            "the checkpoint does not say which positions it was trained on: choose them with `where`",
            "the checkpoint does not record act_fn: taken as linear",
        ],
        training={"rank": ranks[0]},
    )


def _check_config(path: Path, config: dict[str, Any]) -> None:
    kinds = config.get("intervention_types")
    if not isinstance(kinds, list) or not kinds:
        raise ProbeError(f"{path}: no list of intervention_types; not a configuration that pyreft writes")
    for kind in kinds:
        name = str(kind).rstrip("'> ").rpartition(".")[2]
        if name != "LoreftIntervention":
            raise ProbeError(f"{path}: intervention {name[:80]!r}; only LoreftIntervention can be converted")
    representations = config.get("representations")
    for entry in [config, *(representations if isinstance(representations, list) else [])]:
        act_fn = entry.get("act_fn") if isinstance(entry, dict) else None
        if act_fn not in (None, "linear"):
            raise ProbeError(f"{path}: act_fn {str(act_fn)[:80]!r}; only 'linear' can be converted")


def _files(path: Path) -> dict[int, Path]:
    """layer -> file, of interventions on the block's output alone."""
    files: dict[int, Path] = {}
    for file in sorted(path.glob("intkey_*.bin")):
        match = _KEY.fullmatch(file.name) or _PATH_KEY.fullmatch(file.name)
        if match is None:
            raise ProbeError(f"{file}: a file name that pyreft does not write")
        if match["site"] != "block_output" and match.re is _KEY:
            raise ProbeError(f"{file}: component {match['site'][:80]!r}; only block_output can be steered")
        if match["unit"] != "pos" or match["n"] != "1":
            raise ProbeError(f"{file}: unit {match['unit'][:80]!r} of {match['n'][:5]}; expected pos of 1")
        layer = int(match["layer"])
        if layer in files:
            raise ProbeError(
                f"{path}: several interventions at layer {layer} (prefix and suffix positions without shared "
                f"weights?); one for each layer can be converted"
            )
        files[layer] = file
    if not files:
        raise ProbeError(f"{path}: no intkey_*.bin file; a LoReFT folder is what pyreft's `save` writes")
    return files


def _intervention(path: Path, hidden_size: int) -> dict[str, Tensor]:
    """rotation [r, d], weight [r, d], bias [r], float64."""
    tensors = read_tensors(path)
    if set(tensors) != _TENSORS:
        raise ProbeError(f"{path}: holds {listing(sorted(tensors))}; expected {listing(sorted(_TENSORS))}")
    rank = tensors["bias"].numel()
    wanted = {"weight": (rank, hidden_size), "bias": (rank,), "rotate_layer": (hidden_size, rank)}
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape or rank == 0 or not tensors[name].is_floating_point():
            raise ProbeError(
                f"{path}: {name}: {tensors[name].dtype} of shape {tuple(tensors[name].shape)}, "
                f"expected floats of shape {shape}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise ProbeError(f"{path}: {name}: has values that are not finite")
    rotation = tensors["rotate_layer"].double().T
    off = (rotation @ rotation.T - torch.eye(rank, dtype=torch.float64)).abs().max().item()
    if off > ORTHONORMAL_WITHIN:
        raise ProbeError(
            f"{path}: rotate_layer: columns not orthonormal: off by {off:.2g}, allowed {ORTHONORMAL_WITHIN}"
        )
    return {"rotation": rotation, "weight": tensors["weight"].double(), "bias": tensors["bias"].double()}
