"""A random probe of every family, of ordinary scale, for the tiny models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ksteer_vllm import ModelIdentity, ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from testbed.models import HIDDEN_SIZE, NUM_LAYERS
from testbed.probes import LABELS, random_probe

SCALE = {layer: 8.0 + layer for layer in range(NUM_LAYERS)}
RANK = 3


def random_family_probe(
    family: str,
    *,
    hidden_size: int = HIDDEN_SIZE,
    labels: tuple[str, ...] = LABELS,
    seed: int = 0,
    **changes: Any,
) -> Probe:
    """Random tensors; subspaces with orthonormal rows, hard masks, positive deviations."""
    generator = torch.Generator().manual_seed(seed)
    d, k = hidden_size, len(labels)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    def orthonormal(rows: int) -> Tensor:
        return torch.stack([torch.linalg.qr(normal(d, rows))[0].T for _ in range(k)])

    tensors: Mapping[str, Tensor]
    if family == "vectors":
        tensors = {"vectors": normal(k, d)}
    elif family == "linear":
        tensors = {"weight": normal(k, d, scale=d**-0.5), "bias": normal(k),
                   "input_mean": normal(d, scale=0.2), "input_std": normal(d).abs() * 0.3 + 0.4}  # fmt: skip
    elif family == "ace":
        tensors = {"directions": normal(k, d), "negatives_mean": normal(k, d, scale=0.5)}
    elif family == "loreft":
        tensors = {"rotation": orthonormal(RANK), "weight": normal(k, RANK, d, scale=2 * d**-0.5),
                   "bias": normal(k, RANK, scale=2)}  # fmt: skip
    elif family == "lorest":
        removed = torch.randint(0, 2, (k, RANK), generator=generator).float()
        removed[:, 0] = 1
        tensors = {"basis": orthonormal(RANK), "removed": removed, "bias": normal(k, d, scale=0.5)}
    elif family == "sae":
        tensors = {"w_enc": normal(k, d, scale=2 * d**-0.5), "b_enc": normal(k, scale=0.5),
                   "w_dec": normal(k, d),
                   "threshold": normal(k).abs() * 0.5}  # fmt: skip
    elif family == "orbit":
        tensors = {"plane": torch.stack([torch.linalg.qr(normal(d, 2))[0].T for _ in range(k)]),
                   "angle": normal(k) + 2, "gate_weight": normal(k, d, scale=d**-0.5),
                   "gate_bias": normal(k)}  # fmt: skip
    elif family == "mat":
        tensors = {
            "vectors": normal(k, d),
            "gate_weight": normal(k, d, scale=d**-0.5),
            "gate_bias": normal(k),
        }
    else:
        return random_probe(labels=labels, hidden_size=hidden_size, seed=seed, **changes)
    fields = {"layer": 1, "activation_scale": SCALE, **changes}
    identity = ModelIdentity(name="tiny", model_type="llama", hidden_size=d, num_layers=NUM_LAYERS)
    return Probe(ProbeMetadata(family=family, labels=labels, model=identity, **fields), tensors)


def write_probes(root: Path) -> dict[str, Path]:
    """A folder of every family, the probe twice: `mlp`, and the wide `wide` with other labels at layer 2;
    and `control`, vectors with tensors of their own at layers 1 and 3."""
    probes = {family: random_family_probe(family, seed=index) for index, family in enumerate(FAMILY_NAMES)}
    probes["mlp"] = random_family_probe("mlp", activation_scale=SCALE)
    probes["wide"] = random_family_probe("mlp", width=40, layer=2, seed=9, labels=("glad", "sad", "mad"))
    per_layer = [random_family_probe("vectors", seed=20 + index).tensors["vectors"] for index in range(2)]
    base = random_family_probe("vectors", seed=3)
    probes["control"] = Probe(
        base.metadata.model_copy(update={"layers": (1, 3)}), {"vectors": torch.stack(per_layer)}
    )
    return {name: probe.save(root / name) for name, probe in probes.items()}


FAMILY_NAMES = ("vectors", "linear", "ace", "loreft", "lorest", "sae", "orbit", "mat")
