"""The oracle: Hugging Face transformers with forward hooks that run `ksteer_kernels.reference`.

Shares no code with the plugin beyond the definitions: probes' tensors unfolded by hand, windows applied to
absolute positions, the whole sequence in one forward pass, the edit in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ksteer_vllm import Probe, SteeringSpec
from ksteer_vllm.spec.edit import Edit
from tests.support.compare import TOLERANCE, VISIBLE
from tests.support.definitions import apply_edit

KINK = 5e-6
"""A ReLU input (or a threshold) nearer than this may fall on either side: the float32 rounding of engine and
oracle."""


class Oracle:
    """One tiny model of transformers and the probes requests may name."""

    def __init__(self, model: Path, probes: Mapping[str, Probe]) -> None:
        import transformers
        from vllm.config import set_current_vllm_config
        from vllm.engine.arg_utils import EngineArgs

        eager = EngineArgs(model=str(model), enforce_eager=True).create_engine_config()
        with set_current_vllm_config(eager):  # vLLM's transformers backend changes the classes it runs
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.float32, attn_implementation="eager"
            ).eval()
        self.probes = dict(probes)
        inner = self.model.transformer if hasattr(self.model, "transformer") else self.model.model
        inner.do_not_compile = True
        self.layers = inner.h if hasattr(inner, "h") else inner.layers

    @torch.no_grad()
    def log_probs(
        self, prompt: Sequence[int], generated: Sequence[int], spec: SteeringSpec | None
    ) -> tuple[Tensor, float]:
        """(log-probabilities [len(generated), vocabulary], distance to the nearest ReLU kink met)."""
        tokens = torch.tensor([[*prompt, *generated[:-1]]])
        nearest = [float("inf")]
        handles = []
        for edit in spec.edits() if spec is not None else ():
            metadata = self.probes[edit.probe].metadata
            positions = steered_positions(edit, metadata.default_where, len(prompt), tokens.shape[1])
            for layer in edit.layers or metadata.layers or (metadata.layer,):
                hook = self._hook(edit, layer, positions, len(prompt), nearest)
                handles.append(self.layers[layer].register_forward_hook(hook))
        try:
            logits = self.model(tokens).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return torch.log_softmax(logits[len(prompt) - 1 :].double(), -1), nearest[0]

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

    def _hook(
        self, edit: Edit, layer: int, positions: Tensor, num_prompt: int, nearest: list[float]
    ) -> Callable[[torch.nn.Module, Any, Any], Any]:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if len(positions):
                hidden = hidden.clone()
                x = hidden[0, positions].double()
                index = positions - (num_prompt - 1)
                edited, distance = apply_edit(self.probes, edit, x, layer, index)
                nearest[0] = min(nearest[0], distance)
                hidden[0, positions] = edited.to(hidden.dtype)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook


def steered_positions(edit: Edit, default_where: Any, num_prompt: int, length: int) -> Tensor:
    """Absolute positions, ascending: prompt index i is i, generation index j is num_prompt - 1 + j."""
    if edit.where is not None:
        prompt, generation = edit.where.prompt, edit.where.generation
    else:
        where = default_where or {"generation": (0, None)}
        prompt, generation = where.get("prompt"), where.get("generation")
    chosen: set[int] = set()
    if prompt is not None:
        start, end = prompt
        chosen |= set(range(num_prompt)) & set(range(start, num_prompt if end is None else end))
    if generation is not None:
        start, end = generation
        indices = range(start, length if end is None else end)
        chosen |= {num_prompt - 1 + j for j in indices}
    return torch.tensor(sorted(position for position in chosen if position < length), dtype=torch.long)
