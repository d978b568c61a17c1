"""Probes as large as real ones, all resident in one engine: a hundred labels, 512-wide probes, hundreds of
features, a direction for each label. The same path as the small ones: equal to transformers with hooks.

Tolerance 1e-3 on log-probabilities in float32, as in test_methods; at a kink, see there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import SteeringSpec
from ksteer_vllm.probes.probe import Probe
from testbed.compare import assert_all_same
from testbed.families import random_family_probe
from tests.support.engines import generate, generate_one, start_engine, worker
from tests.support.oracle import Oracle

WIDTH = 512
LABELS = tuple(f"label {index}" for index in range(100))
FEATURES = tuple(f"feature {index}" for index in range(200))
DIRECTIONS = tuple(f"direction {index}" for index in range(60))


def many(family: str, labels: tuple[str, ...], **changes: Any) -> Probe:
    return random_family_probe(family, labels=labels, seed=len(labels), **changes)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("large")
    made = {
        "wide": many("mlp", LABELS, width=WIDTH),
        "wider still, few labels": many("mlp", LABELS[:2], width=WIDTH, layer=2),
        "linear": many("linear", LABELS),
        "vectors": many("vectors", LABELS),
        "ace": many("ace", LABELS),
        "loreft": many("loreft", DIRECTIONS),  # 60 labels of rank 3: 360 rows
        "lorest": many("lorest", DIRECTIONS),
        "features": many("sae", FEATURES),  # encoder and decoder: 400 rows
    }
    return {name: probe.save(root / name) for name, probe in made.items()}


half = {"target": list(LABELS[:50]), "avoid": list(LABELS[50:])}
SPECS: dict[str, dict[str, Any]] = {
    "one of a hundred labels": {"probe": "wide", "target": [LABELS[77]], "alpha": 1.5, "num_steps": 3},
    "a hundred labels at once": {"probe": "wide", **half, "alpha": 4.0, "num_steps": 3},
    "softmin": {"probe": "wide", "target": half["target"], "alpha": 1.5, "num_steps": 3, "loss": "softmin"},
    "reflect": {"probe": "wide", "method": "reflect", "avoid": [LABELS[99]], "where": "both"},
    "few labels": {"probe": "wider still, few labels", "target": [LABELS[1]], "alpha": 1.5, "num_steps": 3},
    "linear": {"probe": "linear", **half, "alpha": 3.0, "num_steps": 3},
    "vectors": {"probe": "vectors", "target": {name: k + 1 for k, name in enumerate(LABELS)}, "alpha": 4.0},
    "random": {"probe": "vectors", "method": "random", "target": [LABELS[99]], "alpha": 0.6},
    "ace": {"probe": "ace", "target": [LABELS[99]], "where": "both"},
    "ace of a hundred": {"probe": "ace", **half, "alpha": 3.0, "where": "both"},
    "loreft": {"probe": "loreft", "target": [DIRECTIONS[59]]},
    "lorest": {"probe": "lorest", "target": list(DIRECTIONS), "alpha": 3.0},
    "one feature": {"probe": "features", "method": "clamp", "values": {FEATURES[199]: 5.0}, "where": "both"},
    "every feature off": {
        "probe": "features", "method": "clamp", "values": dict.fromkeys(FEATURES, 0.0), "fade": 8,
    },
    "a condition on a wide probe": {
        "probe": "vectors", "target": [LABELS[3]], "alpha": 0.8, "where": "both",
        "condition": {"probe": "wide", "label": LABELS[98], "above": 0.5},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def large_engine(llama: Path, probes: dict[str, Path]) -> Any:
    return start_engine(
        llama,
        probes,
        steering={"layers": "all", "max_width": WIDTH},
        max_num_seqs=len(SPECS) + 1,
        enable_prefix_caching=False,
    )


def test_large_probes_in_one_batch_equal_transformers_with_hooks(
    large_engine: Any, llama: Path, probes: dict[str, Path], prompts: Callable[..., list[list[int]]]
) -> None:
    assert len(probes) == 8
    tables = worker(large_engine).ksteer_state.pool.tables
    assert (tables.max_width, tables.max_labels) == (WIDTH, len(LABELS))
    oracle = Oracle(llama, {name: Probe.load(folder) for name, folder in probes.items()})
    asked = prompts(len(SPECS) + 1, 12)
    outputs = generate(large_engine, asked, [None, *SPECS.values()], max_tokens=6)
    specs = {name: SteeringSpec.parse(fields) for name, fields in SPECS.items()}
    oracle.check({"unsteered": None, **specs}, asked, outputs)


def test_large_probes_alone_equal_themselves_in_the_batch(
    large_engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    asked = prompts(len(SPECS), 12)
    together = generate(large_engine, asked, list(SPECS.values()), max_tokens=4)
    alone = [
        generate_one(large_engine, prompt, spec, max_tokens=4)
        for prompt, spec in zip(asked, SPECS.values(), strict=True)
    ]
    assert_all_same(together, alone, "large probes in one batch and alone")
