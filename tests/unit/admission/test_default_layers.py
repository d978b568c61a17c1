"""A probe with tensors for several layers may name those of requests that give none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.probes.probe import Probe
from testbed.families import random_family_probe


def per_layer(**metadata: Any) -> Probe:
    base = random_family_probe("vectors")
    fields = {"layers": (1, 3), **metadata}
    tensors = {"vectors": torch.stack([base.tensors["vectors"]] * 2)}
    return Probe(
        base.with_metadata().metadata.model_validate({**base.metadata.model_dump(), **fields}), tensors
    )


def layers_of(folder: Path, **spec: Any) -> list[int]:
    config = resolve_config(
        EngineConfig.parse({"probes": {"v": str(folder)}}), Probe.load_metadata(folder).model
    )
    admitted = Registry.from_config(config).admit({"probe": "v", "target": ["warm"], "alpha": 1.0, **spec})
    found: list[int] = admitted.edits[0].canonical["layers"]
    return found


def test_requests_without_layers_use_the_default_ones(tmp_path: Path) -> None:
    assert layers_of(per_layer().save(tmp_path / "all")) == [1, 3]
    chosen = per_layer(default_layers=(3,)).save(tmp_path / "chosen")
    assert layers_of(chosen) == [3]
    assert layers_of(chosen, layers=[1]) == [1]


def test_the_digest_does_not_depend_on_defaults(tmp_path: Path) -> None:
    folders = [per_layer(default_layers=layers).save(tmp_path / str(len(layers))) for layers in ((), (3,))]
    assert len({Probe.load_metadata(folder).digest for folder in folders}) == 1


def test_a_default_layer_needs_tensors() -> None:
    with pytest.raises(ValueError, match="default_layers: no tensors for layer 2"):
        per_layer(default_layers=(2,))
