"""A random probe of every family, of ordinary scale, for the tiny models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ksteer_vllm import ModelIdentity, ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import COVARIANCE_UP
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


def random_covariance(size: int, seed: int = 0) -> Tensor:
    """Symmetric, positive definite, with coordinates of different scales; float64."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    scales = 0.3 + 1.5 * torch.rand(size, generator=generator, dtype=torch.float64)
    return scales[:, None] * (root @ root.T / size + 0.1 * torch.eye(size)) * scales


def with_metrics(probe: Probe, *, seed: int = 0) -> Probe:
    """The probe (mlp or linear) with a random covariance, and scales at every layer for both metrics."""
    tensors = probe.tensors
    rows = tensors["w1" if "w1" in tensors else "weight"].double() / tensors["input_std"].double()
    up = rows @ random_covariance(probe.metadata.model.hidden_size, seed)
    scales = {metric: {layer: 8.0 + layer for layer in SCALE} for metric in ("variance", "covariance")}
    metadata = probe.with_metadata(metric_scale=scales).metadata
    return Probe(metadata, {**tensors, COVARIANCE_UP: up.float()})


def at_layers(*probes: Probe) -> Probe:
    """Probes of one family as one, with the tensors of each at its layer."""
    layers = [probe.metadata.layer for probe in probes]
    fields = {**probes[0].metadata.model_dump(), "layers": layers}
    stacked = {name: torch.stack([probe.tensors[name] for probe in probes]) for name in probes[0].tensors}
    return Probe(ProbeMetadata.model_validate(fields), stacked)


def write_probes(root: Path) -> dict[str, Path]:
    """A folder of every family, the probe twice: `mlp`, and the wide `wide` with other labels at layer 2;
    `control`, vectors with tensors of their own at layers 1 and 3; and `knob`, an mlp with a network for each
    of these two. `linear` and `knob` have statistics for both metrics, `mlp` and `wide` for the variance."""
    probes = {family: random_family_probe(family, seed=index) for index, family in enumerate(FAMILY_NAMES)}
    probes["mlp"] = random_family_probe("mlp", activation_scale=SCALE)
    probes["wide"] = random_family_probe("mlp", width=40, layer=2, seed=9, labels=("glad", "sad", "mad"))
    probes["linear"] = with_metrics(probes["linear"])
    probes["control"] = at_layers(
        *(random_family_probe("vectors", seed=20 + index, layer=layer) for index, layer in enumerate((1, 3)))
    )
    networks = (
        random_family_probe("mlp", seed=30 + layer, layer=layer, activation_scale=SCALE) for layer in (1, 3)
    )
    probes["knob"] = at_layers(*(with_metrics(network) for network in networks))
    return {name: probe.save(root / name) for name, probe in probes.items()}


FAMILY_NAMES = ("vectors", "linear", "ace", "loreft", "lorest", "sae", "orbit", "mat")
