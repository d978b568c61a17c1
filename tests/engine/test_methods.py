"""Every method and option of an edit, in one mixed batch of one engine, against transformers with hooks.

Tolerance 1e-3 on log-probabilities in float32, as in test_parity_with_transformers: engine and oracle differ
by about 1e-5. A token within 5e-6 of a ReLU kink, a threshold or a stopping rule may fall on either side in
the two; such a case may exceed the tolerance, at most one of them, and is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import SteeringSpec
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES
from testbed.compare import assert_all_same
from testbed.families import write_probes
from tests.support.engines import generate, generate_one, start_engine
from tests.support.oracle import Oracle

WARM: dict[str, Any] = {"probe": "mlp", "target": ["warm"], "avoid": ["cold"]}

METHODS: dict[str, dict[str, Any]] = {
    "gradient": {**WARM, "alpha": 0.6},
    "reflect": {"probe": "mlp", "method": "reflect", "avoid": ["warm", "dry"], "where": "both"},
    "project": {"probe": "mlp", "method": "project", "avoid": ["cold"], "where": "both"},
    "add, probe": {**WARM, "method": "add", "alpha": 0.7},
    "random, probe": {**WARM, "method": "random", "alpha": 0.7},
    "gradient, linear": {
        "probe": "linear",
        "target": ["warm"],
        "alpha": 1.0,
        "num_steps": 4,
        "step_decay": 0.8,
    },
    "add, vectors": {"probe": "vectors", "target": {"warm": 2, "dry": 1}, "alpha": 0.8},
    "random, vectors": {"probe": "vectors", "method": "random", "target": ["warm"], "alpha": 0.8},
    "control vectors": {"probe": "control", "target": ["warm"], "alpha": 0.6, "where": "both"},
    "ace": {"probe": "ace", "target": ["warm"], "avoid": ["cold"], "where": "both"},
    "ace, alpha 0": {"probe": "ace", "target": ["warm"], "alpha": 0.0, "where": "both", "layers": [0, 1, 2]},
    "ablate": {
        "probe": "ace",
        "method": "ablate",
        "avoid": ["cold"],
        "layers": [0, 1, 2, 3],
        "where": "both",
    },
    "loreft": {"probe": "loreft", "target": ["warm"]},
    "loreft, two labels": {"probe": "loreft", "target": {"cold": 1, "dry": 3}, "alpha": 1.5},
    "lorest": {"probe": "lorest", "target": ["warm", "dry"], "alpha": 2.0},
    "orbit": {"probe": "orbit", "target": ["warm", "dry"], "alpha": 1.5, "where": "both"},
    "mat_steer": {"probe": "mat", "target": {"warm": 2, "cold": 1}, "alpha": 2.0},
    "sae, add": {"probe": "sae", "target": ["dry"], "avoid": ["cold"], "alpha": 0.7},
    "sae, clamp": {"probe": "sae", "method": "clamp", "values": {"warm": 6.0, "cold": 0.0}, "where": "both"},
}

OPTIONS: dict[str, dict[str, Any]] = {
    "softmin": {
        "probe": "mlp", "target": ["warm", "dry"], "avoid": ["cold"], "alpha": 0.8, "loss": "softmin",
    },
    "hinge": {**WARM, "alpha": 0.8, "loss": {"hinge": 0.9}, "where": "both"},
    "until": {**WARM, "alpha": 0.4, "num_steps": 40, "until": {"target": 0.95, "avoid": 0.1}},
    "normalised": {**WARM, "alpha": 0.1, "unit": "normalised", "step_decay": 0.9},
    "normalised vectors": {"probe": "vectors", "target": ["warm"], "alpha": 0.5, "unit": "normalised"},
    "normalised linear": {
        "probe": "linear", "target": ["dry"], "alpha": 0.2, "unit": "normalised", "num_steps": 3,
    },
    "variance": {**WARM, "alpha": 2.0, "metric": "variance", "loss": "softmin"},
    "variance, normalised, two networks": {
        "probe": "knob", "target": ["warm", "dry"], "avoid": ["cold"], "metric": "variance",
        "unit": "normalised", "alpha": 0.05, "step_decay": 0.9, "where": "both",
    },
    "covariance, two networks": {
        "probe": "knob", "target": ["warm"], "metric": "covariance", "alpha": 0.5, "strength": 2, "cap": 0.4,
        "until": {"target": 0.999},
    },
    "covariance, normalised": {
        "probe": "knob", "target": ["dry"], "metric": "covariance", "unit": "normalised", "alpha": 0.05,
        "layers": [3], "fade": 6,
    },
    "variance, linear": {"probe": "linear", "target": ["warm"], "alpha": 2.0, "metric": "variance"},
    "covariance, normalised, linear": {
        "probe": "linear", "target": ["dry"], "avoid": ["warm"], "alpha": 0.04, "metric": "covariance",
        "unit": "normalised", "cap": 0.6,
    },
    "condition, two networks": {
        "probe": "knob", "target": ["warm"], "metric": "variance", "alpha": 2.0, "where": "both",
        "condition": {"probe": "knob", "label": "dry", "above": 0.5},
    },
    "cap": {**WARM, "alpha": 3.0, "cap": 0.3, "where": "both"},
    "cap, vectors": {"probe": "vectors", "target": ["warm"], "alpha": 5.0, "cap": 0.4},
    "preserve_norm": {**WARM, "alpha": 1.0, "preserve_norm": True, "layers": [0, 2]},
    "preserve_norm, ace": {"probe": "ace", "target": ["warm"], "alpha": 2.0, "preserve_norm": True},
    "fade": {**WARM, "alpha": 1.0, "fade": 6, "where": "both"},
    "fade, loreft": {"probe": "loreft", "target": ["warm"], "fade": 5},
    "condition, probe": {
        "probe": "vectors", "target": ["warm"], "alpha": 1.0, "where": "both",
        "condition": {"probe": "mlp", "label": "dry", "above": 0.5},
    },
    "condition, cosine": {
        **WARM, "alpha": 1.0, "where": "both",
        "condition": {"probe": "vectors", "label": "cold", "below": 0.05},
    },
    "condition, linear": {
        "probe": "lorest", "target": ["warm"], "alpha": 2.0, "where": "both",
        "condition": {"probe": "linear", "label": "warm", "above": 0.4},
    },
    "stack": {"stack": [{**WARM, "alpha": 0.5}, {"probe": "ace", "target": ["dry"], "layers": [1, 2]}]},
    "stack of three": {
        "stack": [
            {"probe": "vectors", "target": ["warm"], "alpha": 0.5},
            {"probe": "wide", "target": ["glad"], "avoid": ["mad"], "alpha": 0.5, "layers": [1, 2]},
            {"probe": "mlp", "target": ["dry"], "alpha": 0.5, "where": {"prompt": [2, 9]}},
        ]
    },
    "plan": {
        "stack": [
            {**WARM, "alpha": 0.5, "layers": [0]},
            {"probe": "mlp", "target": ["dry"], "alpha": 0.7, "num_steps": 2, "layers": [1, 3]},
            {"probe": "wide", "target": ["sad"], "alpha": 0.4},
        ]
    },
    "stack with a condition": {
        "stack": [
            {"probe": "lorest", "target": ["cold"], "where": "both"},
            {
                **WARM, "alpha": 0.8, "where": "both",
                "condition": {"probe": "vectors", "label": "dry", "above": 0.0},
            },
        ]
    },
}  # fmt: skip

CASES = {**METHODS, **OPTIONS}


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_probes(tmp_path_factory.mktemp("probes"))


@pytest.fixture(scope="module")
def methods_engine(llama: Path, probes: dict[str, Path]) -> Any:
    return start_engine(
        llama,
        probes,
        steering={"layers": "all", "max_probes": 16, "max_stages": 3},
        max_num_seqs=len(CASES) + 1,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
    )


@pytest.fixture(scope="module")
def oracle(llama: Path, probes: dict[str, Path]) -> Oracle:
    return Oracle(llama, {name: Probe.load(folder) for name, folder in probes.items()})


def test_every_method_of_every_family_has_a_case() -> None:
    families = {"control": "vectors", "wide": "mlp", "knob": "mlp"}
    seen = set()
    for case in METHODS.values():
        family = families.get(case["probe"], case["probe"])
        seen.add((family, case.get("method", next(iter(FAMILIES[family].methods)))))
    assert seen >= {(name, m) for name, f in FAMILIES.items() for m in f.methods}


def test_every_method_in_one_batch_equals_transformers_with_hooks(
    methods_engine: Any, oracle: Oracle, prompts: Callable[..., list[list[int]]]
) -> None:
    specs = {name: SteeringSpec.parse(fields) for name, fields in CASES.items()}
    asked = prompts(len(specs) + 1, 14)
    outputs = generate(methods_engine, asked, [None, *CASES.values()], max_tokens=10)
    oracle.check({"unsteered": None, **specs}, asked, outputs)


def test_every_method_alone_equals_itself_in_the_batch(
    methods_engine: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    asked = prompts(len(CASES), 14)
    together = generate(methods_engine, asked, list(CASES.values()), max_tokens=6)
    alone = [
        generate_one(methods_engine, prompt, spec, max_tokens=6)
        for prompt, spec in zip(asked, CASES.values(), strict=True)
    ]
    assert_all_same(together, alone, "every method in one batch and alone")
