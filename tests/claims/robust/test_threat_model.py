"""Every test the threat model names exists, and its limits are those of the configuration."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from ksteer_vllm.config import EngineConfig
from ksteer_vllm.spec.labels import MAX_LABELS_PER_SIDE

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "THREAT_MODEL.md").read_text()


def test_every_claim_has_a_test_that_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 30
    for path, name in named:
        functions = [
            n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef)
        ]
        assert name in functions, f"{path}::{name}"


def test_the_table_has_the_defaults() -> None:
    rows = dict(re.findall(r"`--ksteer-(max-[a-z-]+)` \| (\d+) \|", TEXT))
    defaults = EngineConfig()
    assert len(rows) == 5
    for flag, value in rows.items():
        assert getattr(defaults, flag.replace("-", "_")) == int(value), flag
    assert f"| (fixed) | {MAX_LABELS_PER_SIDE} |" in TEXT
