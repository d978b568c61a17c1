"""Files of other packages, written as those packages write them, and what they do to a residual stream."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ksteer_vllm import ModelIdentity
from ksteer_vllm.convert import Options

D, LAYERS = 16, 4
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
"""float32 sums of 16 products in another order: a few 1e-7; a wrong formula is off by more than 1e-2."""


def options(**changes: Any) -> Options:
    model = ModelIdentity(name="tiny", model_type="llama", hidden_size=D, num_layers=LAYERS)
    return Options(**{"model": model, **changes})


def streams(count: int = 5) -> Tensor:
    """[count, D] residual-stream vectors."""
    return torch.randn(count, D, generator=torch.Generator().manual_seed(3)) * 2


class MultiLabelSteeringModel(nn.Module):
    """Attributes of k-steering 0.1.2's class of this name."""

    def __init__(
        self, width: int, num_labels: int, clf_type: str = "mlp", activation: type = nn.ReLU
    ) -> None:
        super().__init__()
        self.net: nn.Module = nn.Linear(D, num_labels)
        if clf_type == "mlp":
            first, second, last = nn.Linear(D, width), nn.Linear(width, width), nn.Linear(width, num_labels)
            self.net = nn.Sequential(first, activation(), second, activation(), last)


class TrainerConfig:
    """Attributes of k-steering 0.1.2's class of this name."""

    def __init__(self) -> None:
        self.input_dim, self.hidden_dim, self.clf_type, self.lr = D, 12, "mlp", 1e-3
        self.extra_config: dict[str, Any] = {}


class ActivationSteeringTrainer:
    """Attributes of k-steering 0.1.2's class of this name, after one step of training."""

    def __init__(self, classifier: MultiLabelSteeringModel) -> None:
        self.device = "cpu"
        self.trainer_config = TrainerConfig()
        self.classifier = classifier
        self.optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
        self.loss_fn = nn.BCEWithLogitsLoss()
        self.loss_fn(classifier.net(streams()), torch.ones(5, 3)).backward()
        self.optimizer.step()


@dataclass
class SteeringVector:
    """Fields of steering-vectors 0.12.2's class of this name."""

    layer_activations: dict[int, Tensor]
    layer_type: str = "decoder_block"


HOMES: Mapping[type, str] = {
    MultiLabelSteeringModel: "k_steering.steering.trainer",
    ActivationSteeringTrainer: "k_steering.steering.trainer",
    TrainerConfig: "k_steering.steering.config",
    SteeringVector: "steering_vectors.steering_vector",
}

PARENTS = ("k_steering", "k_steering.steering", "steering_vectors")


@contextmanager
def at_home() -> Iterator[None]:
    """Pickle the classes above under the names of the packages' own; outside, nobody can import them."""
    before = {name: sys.modules.get(name) for name in (*HOMES.values(), *PARENTS)}
    here = {kind: kind.__module__ for kind in HOMES}
    for name in before:
        sys.modules[name] = ModuleType(name)
    for kind, name in HOMES.items():
        kind.__module__ = name
        setattr(sys.modules[name], kind.__name__, kind)
    try:
        yield
    finally:
        for kind, name in here.items():
            kind.__module__ = name
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def write_gguf(
    path: Path,
    tensors: Mapping[str, Tensor],
    architecture: str = "controlvector",
    hint: str = "llama",
    version: int = 3,
    kind: int | None = None,
) -> Path:
    """The bytes that `gguf.GGUFWriter` writes for a control vector (test_repeng compares them)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), 3)
    head += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    head += text("controlvector.model_hint") + struct.pack("<I", 8) + text(hint)
    head += text("controlvector.layer_count") + struct.pack("<II", 4, len(tensors))
    data = b""
    for name, tensor in tensors.items():
        own = {torch.float32: 0, torch.float16: 1}[tensor.dtype]
        head += text(name) + struct.pack("<I", tensor.ndim)
        head += struct.pack(f"<{tensor.ndim}Q", *reversed(tensor.shape))
        head += struct.pack("<IQ", own if kind is None else kind, len(data))
        data += tensor.numpy().tobytes()
        data += b"\0" * (-len(data) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


@dataclass
class Loreft:
    """One intervention's tensors as pyreft 0.1.0 keeps them: rotate_layer [d, r] with orthonormal columns."""

    weight: Tensor
    bias: Tensor
    rotate_layer: Tensor

    @classmethod
    def random(cls, rank: int, seed: int) -> Loreft:
        generator = torch.Generator().manual_seed(seed)
        columns, _ = torch.linalg.qr(torch.randn(D, rank, generator=generator))
        weight = torch.randn(rank, D, generator=generator) * D**-0.5
        return cls(weight, torch.randn(rank, generator=generator), columns.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """The package's forward, in its row convention."""
        rotated = x @ self.rotate_layer
        return x + (x @ self.weight.T + self.bias - rotated) @ self.rotate_layer.T


LOREFT = "<class 'pyreft.interventions.LoreftIntervention'>"


def write_pyreft(folder: Path, interventions: Mapping[int, Loreft], **config: Any) -> Path:
    """The folder that pyreft 0.1.0 writes (test_pyreft compares the file names and the configuration)."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [f"layer_{layer}_comp_block_output_unit_pos_nunit_1#0" for layer in interventions]
    for key, part in zip(keys, interventions.values(), strict=True):
        torch.save(dict(vars(part)), folder / f"intkey_{key}.bin")
    fields = {
        "intervention_constant_sources": [True] * len(keys),
        "intervention_dimensions": [D] * len(keys),
        "intervention_types": [LOREFT] * len(keys),
        "mode": "parallel",
        "representations": [
            [layer, "block_output", "pos", 1, len(part.bias), *[None] * 9]
            for layer, part in interventions.items()
        ],
        "sorted_keys": keys,
    }
    (folder / "config.json").write_text(json.dumps({**fields, **config}))
    return folder
