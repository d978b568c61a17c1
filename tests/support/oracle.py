"""What an engine generated, held against `ksteer verify`'s oracle: transformers with hooks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ksteer_vllm import Probe, SteeringSpec
from ksteer_vllm.verify import oracle
from testbed.compare import TOLERANCE, VISIBLE

KINK = 5e-6
"""A ReLU input (or a threshold) nearer than this may fall on either side: the float32 rounding of engine and
oracle."""


class Oracle:
    """One tiny model of transformers and the probes requests may name."""

    def __init__(self, model: Path, probes: Mapping[str, Probe]) -> None:
        from transformers import AutoConfig

        num_layers = AutoConfig.from_pretrained(model).get_text_config().num_hidden_layers
        self._oracle = oracle.Oracle(str(model), num_layers, probes)
        self._probes = probes
        self.model, self.layers = self._oracle.model, self._oracle.blocks

    def log_probs(
        self, prompt: Sequence[int], generated: Sequence[int], spec: SteeringSpec | None
    ) -> tuple[Tensor, float]:
        """(log-probabilities [len(generated), vocabulary], distance to the nearest ReLU kink met)."""
        length = len(prompt) + len(generated) - 1
        edits = () if spec is None else oracle.block_edits(spec, self._probes, len(prompt), length)
        return self._oracle.log_probs(prompt, generated, edits)

    def check(
        self,
        cases: Mapping[str, SteeringSpec | None],
        prompts: Sequence[Sequence[int]],
        outputs: Sequence[Any],
        title: str = "",
    ) -> None:
        """Assert that an engine's greedy outputs are what transformers computes, case by case.

        Log-probabilities within TOLERANCE; a case that met a kink may exceed it, at most one of them. Every
        steered case must differ visibly from no steering, or it could not show that steering was lost.
        """
        at_kinks, wrong, weak = [], [], []
        for (name, spec), prompt, output in zip(cases.items(), prompts, outputs, strict=True):
            error, kink = self._error(prompt, output, spec)
            effect = self._error(prompt, output, None)[0] if spec is not None else math.inf
            print(f"{title} {name}: error {error:.1e}, effect {effect:.2g}, nearest kink {kink:.1e}")
            if effect <= VISIBLE:
                weak.append(name)
            if error >= TOLERANCE:
                (at_kinks if kink < KINK else wrong).append(f"{name}: {error}")
        assert not wrong, f"{title} log-probabilities differ: {wrong}"
        assert not weak, f"{title} steering is too weak to test: {weak}"
        assert len(at_kinks) <= 1, at_kinks

    def _error(self, prompt: Sequence[int], output: Any, spec: SteeringSpec | None) -> tuple[float, float]:
        """(largest difference of reported log-probabilities from the oracle's, nearest kink)."""
        completion = output.outputs[0]
        expected, kink = self.log_probs(prompt, completion.token_ids, spec)
        return max(
            abs(entry.logprob - float(expected[j, token]))
            for j, step in enumerate(completion.logprobs)
            for token, entry in step.items()
        ), kink
