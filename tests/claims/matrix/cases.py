"""The requests every engine feature is tried with: plain and steered, in one batch, longer than a window."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from ksteer_vllm import SteeringSpec, report
from testbed.models import VOCAB_SIZE

PROMPT_LENGTH = 70
"""Two cache blocks of 32 and a part; longer than the windows of the sliding-window models (32)."""

SPECS: dict[str, SteeringSpec | None] = {
    "unsteered": None,
    "generation": SteeringSpec(probe="tones", target=["warm"], alpha=0.8),
    "both, two layers": SteeringSpec(
        probe="tones", target=["cold"], avoid=["warm"], alpha=0.5, layers=[0, 2], where="both"
    ),
    "prompt": SteeringSpec(probe="tones", avoid=["cold"], alpha=0.8, where="prompt"),
}


def with_method(method: str | None) -> dict[str, SteeringSpec | None]:
    """SPECS by another method, or as they are."""
    if method is None:
        return SPECS
    return {name: spec and spec.model_copy(update={"method": method}) for name, spec in SPECS.items()}


def prompts(count: int, length: int = PROMPT_LENGTH, seed: int = 0) -> list[list[int]]:
    """Random token prompts that share no block."""
    source = random.Random(f"matrix {count} {length} {seed}")
    return [[source.randrange(4, VOCAB_SIZE) for _ in range(length)] for _ in range(count)]


ASKED: list[tuple[list[int], SteeringSpec | None]] = list(
    zip(prompts(len(SPECS)), SPECS.values(), strict=True)
)
"""One prompt per spec."""


def reporting(spec: SteeringSpec | None) -> dict[str, Any] | None:
    """The same request, with a report."""
    return None if spec is None else {**spec.canonical(), "report": True}


def records(found: dict[str, Any]) -> dict[tuple[int, int], list[int]]:
    """(edit, layer) -> the positions a report has records of, in the order they are listed."""
    return {
        (index, layer["layer"]): [token["position"] for token in layer["tokens"]]
        for index, edit in enumerate(found["edits"])
        for layer in edit["layers"]
    }


def as_json(output: Any) -> dict[str, Any]:
    """What a test program says of a finished RequestOutput of one completion: see `as_output`."""
    completion = output.outputs[0]
    steps = [{token: entry.logprob for token, entry in step.items()} for step in completion.logprobs]
    return {"tokens": list(completion.token_ids), "steps": steps, "report": report(output)}


def as_output(answer: dict[str, Any]) -> SimpleNamespace:
    """The answer of a test program, in the form of a RequestOutput."""
    steps = [
        {int(token): SimpleNamespace(logprob=value) for token, value in step.items()}
        for step in answer["steps"]
    ]
    completion = SimpleNamespace(token_ids=answer["tokens"], logprobs=steps)
    return SimpleNamespace(outputs=[completion], report=answer["report"])
