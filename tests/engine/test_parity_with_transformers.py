"""Every family against transformers with forward hooks: one engine per family, every case in one batch.

Tolerance 1e-3 on log-probabilities in float32, for every generated token and its top 5: engine and oracle
differ by about 1e-5. A ReLU input within 5e-6 of 0 may fall on either side in the two, and moves a token by a
whole unit of the probe; such a case may exceed the tolerance, at most one per family, and is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import SteeringSpec
from testbed.models import FAMILIES
from tests.support.engines import generate, start_engine
from tests.support.oracle import Oracle

CASES: dict[str, dict[str, Any]] = {
    "default": {"target": ["warm"], "alpha": 0.6},
    "one step": {"target": ["warm"], "avoid": ["cold"], "alpha": 4.0, "num_steps": 1},
    "weights, decay": {
        "target": {"warm": 3, "dry": 1},
        "avoid": ["cold"],
        "alpha": 0.8,
        "num_steps": 5,
        "step_decay": 0.7,
        "where": "both",
    },
    "prompt, negative": {"target": ["dry"], "alpha": -0.7, "where": "prompt"},
    "two layers, both": {"avoid": ["cold"], "alpha": 0.5, "layers": [0, 2], "where": "both"},
    "all layers": {"target": ["warm"], "alpha": 0.4, "num_steps": 2, "layers": [0, 1, 2, 3]},
    "prompt window": {"target": ["warm"], "alpha": 3.0, "where": {"prompt": [2, 9]}},
    "generation window": {"target": ["cold"], "alpha": 1.5, "where": {"generation": [3, 6]}},
    "two windows": {
        "target": ["cold"],
        "alpha": 1.0,
        "where": {"prompt": [5, None], "generation": [0, 4]},
    },
    "reflect": {"avoid": ["warm", "dry"], "method": "reflect", "layers": [1, 3]},
    "reflect, prompt": {"avoid": ["cold"], "method": "reflect", "where": "prompt"},
    "project, both": {"avoid": {"warm": 1, "cold": 2}, "method": "project", "where": "both"},
    "add": {"target": ["warm"], "avoid": ["dry"], "method": "add", "alpha": 0.7},
    "add, prompt, two layers": {
        "target": ["cold"],
        "method": "add",
        "alpha": 0.4,
        "layers": [0, 3],
        "where": "prompt",
    },
    "second probe": {"probe": "moods", "target": ["glad"], "avoid": ["sad"], "alpha": 0.8, "where": "both"},
}

SPECS = {name: SteeringSpec.parse({"probe": "tones", **fields}) for name, fields in CASES.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_equals_transformers_with_hooks(
    family: str,
    model_folder: Callable[[str], Path],
    probe_folders: Callable[[str], dict[str, Path]],
    load_probes: Callable[..., Any],
    prompts: Callable[..., list[list[int]]],
) -> None:
    folders = probe_folders(family)
    oracle = Oracle(model_folder(family), load_probes(folders))
    llm = start_engine(model_folder(family), folders, steering={"layers": "all"}, max_num_seqs=20)
    asked = prompts(len(SPECS) + 1, 14)
    outputs = generate(llm, asked, [None, *SPECS.values()], max_tokens=10)

    oracle.check({"unsteered": None, **SPECS}, asked, outputs, family)
