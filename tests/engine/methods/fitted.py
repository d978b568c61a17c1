"""Probes of given tensors, for methods whose tensors a test makes itself."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ksteer_vllm import ModelIdentity, ProbeMetadata
from ksteer_vllm.probes.probe import Probe

LABELS = ("warm", "dry", "wry")
HIDDEN_SIZE = 32


def probe_of(family: str, tensors: Mapping[str, Tensor]) -> Probe:
    model = ModelIdentity(name="tiny", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=4)
    return Probe(ProbeMetadata(family=family, labels=LABELS, layer=1, model=model), tensors)
