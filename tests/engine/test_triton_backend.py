"""The Triton kernels inside an engine, on the V2 runner, in Triton's interpreter (run by test_v2_runner)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ksteer_vllm
from testbed.compare import assert_all_same
from testbed.families import write_probes
from tests.engine.test_methods import CASES
from tests.support.engines import generate, start_engine, wants_v2_runner

pytestmark = pytest.mark.skipif(not wants_v2_runner(), reason="needs Triton's interpreter from the start")

CHOSEN = ("gradient", "reflect", "add, vectors", "ace", "sae, clamp", "softmin", "until", "cap", "fade",
          "preserve_norm", "condition, probe", "stack")  # fmt: skip
"""A method or an option of each program; tests/kernels compares all of them with the references."""


@pytest.fixture(scope="module")
def engines(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same engine with either backend."""
    folders = write_probes(tmp_path_factory.mktemp("probes"))
    return {
        kernels: start_engine(
            llama,
            folders,
            steering={"layers": "all", "max_probes": 16, "kernels": kernels},
            max_num_batched_tokens=512,
            enable_prefix_caching=False,
        )
        for kernels in ("torch", "triton")
    }


def test_both_backends_generate_the_same(
    engines: dict[str, Any], prompts: Callable[..., list[list[int]]]
) -> None:
    asked = prompts(len(CHOSEN) + 1, 10)
    specs = [None, *(CASES[name] for name in CHOSEN)]
    outputs = {name: generate(llm, asked, specs, max_tokens=4) for name, llm in engines.items()}
    assert_all_same(outputs["torch"], outputs["triton"], "torch and Triton backend")


def test_both_backends_report_the_same(
    engines: dict[str, Any], prompts: Callable[..., list[list[int]]]
) -> None:
    """Within 1e-4: float32 sums in another order, through a sigmoid."""
    names = ("gradient", "until", "stack", "condition, probe")
    asked = prompts(len(names), 10, seed=3)
    specs = [{**CASES[name], "report": True} for name in names]
    outputs = {name: generate(llm, asked, specs, max_tokens=4) for name, llm in engines.items()}
    for name, ours, theirs in zip(names, outputs["torch"], outputs["triton"], strict=True):
        left, right = ksteer_vllm.report(ours), ksteer_vllm.report(theirs)
        assert left is not None
        assert right is not None
        assert left["tokens_steered"] == right["tokens_steered"] > 0, name
        for a, b in zip(left["edits"], right["edits"], strict=True):
            assert [layer["layer"] for layer in a["layers"]] == [layer["layer"] for layer in b["layers"]]
            for of_torch, of_triton in zip(a["layers"], b["layers"], strict=True):
                for s, t in zip(of_torch["tokens"], of_triton["tokens"], strict=True):
                    assert (s["position"], s["steps"]) == (t["position"], t["steps"]), name
                    assert s["shift"] == pytest.approx(t["shift"], abs=1e-4), name
                    for side in ("before", "after"):
                        assert (s[side] is None) == (t[side] is None)
                        assert s[side] is None or s[side] == pytest.approx(t[side], abs=1e-4), name
