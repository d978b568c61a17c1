"""The sizes of a run of the demo on SmolLM2. Imports no torch."""

from __future__ import annotations

from typing import Any, Final

from ksteer_vllm.experiments.knob.plan import KnobPlan

__all__ = ["CAA", "ENGINE_OPTIONS", "PAIRS", "PLAN"]

PLAN: Final = KnobPlan(
    fit_questions=50, samples=2, held_out=20, reply_tokens=40, strengths=(0.15, 0.2, 0.25, 0.35)
)
"""20 questions a cell, and as many to choose strengths on."""

ENGINE_OPTIONS: Final[dict[str, Any]] = {
    "max_model_len": 512,
    "max_num_seqs": 64,
    "kv_cache_memory_bytes": 1 << 30,
}

CAA: Final[dict[str, Any]] = {"method": "add", "unit": "normalised"}
"""Averaged vectors, as `RECIPE` is for K-Steering; they are in the same probe, at the same layers."""

PAIRS: Final = (("french", "excited"), ("pirate", "first person"))
"""Asked for together."""
