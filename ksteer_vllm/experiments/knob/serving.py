"""What to type to serve a knob and to turn it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["serving_lines"]


def serving_lines(
    model: str, out: Path, label: str, engine_options: Mapping[str, Any], name: str = ""
) -> list[str]:
    """A command that serves the model with the knob, and one that asks it, steered.

    Args:
        model: What the server is to load.
        out: The probe folder.
        label: The label to steer to.
        engine_options: Arguments of `vllm.LLM` that the knob was made with.
        name: What the probe is served as; empty: the name of its folder.
    """
    name = name or out.resolve().name
    flags = [
        f"--{key.replace('_', '-')} {shlex.quote(str(value))}"
        for key, value in engine_options.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    serve = " ".join(
        ["vllm serve", shlex.quote(model), "--ksteer-probe", shlex.quote(f"{name}={out}"), *flags]
    )
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What makes a good breakfast?"}],
        "max_tokens": 60,
        "ksteer": {"probe": name, "target": [label]},
    }
    ask = (
        "curl -s http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )
    return [serve, ask]
