"""The oracle: Hugging Face transformers with a forward hook that runs `ksteer_kernels.steer.naive`.

Shares no code with the plugin beyond the definitions: probe weights unfolded by hand, windows applied to
absolute positions, the whole sequence in one forward pass, the edit in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels.steer import naive
from ksteer_vllm import Probe, SteeringSpec

KINK = 5e-6
"""A ReLU input nearer to 0 than this may fall on either side: the float32 rounding of engine and oracle."""


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
        self.probes = probes
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
        if spec is not None:
            probe = self.probes[spec.probe]
            positions = steered_positions(spec, len(prompt), tokens.shape[1])
            for layer in spec.layers or (probe.metadata.layer,):
                hook = _hook(probe, spec, positions, nearest)
                handles.append(self.layers[layer].register_forward_hook(hook))
        try:
            logits = self.model(tokens).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return torch.log_softmax(logits[len(prompt) - 1 :].double(), -1), nearest[0]


def steered_positions(spec: SteeringSpec, num_prompt: int, length: int) -> Tensor:
    """Absolute positions, ascending: prompt index i is i, generation index j is num_prompt - 1 + j."""
    chosen: set[int] = set()
    if spec.where.prompt is not None:
        start, end = spec.where.prompt
        chosen |= set(range(num_prompt)) & set(range(start, num_prompt if end is None else end))
    if spec.where.generation is not None:
        start, end = spec.where.generation
        indices = range(start, length if end is None else end)
        chosen |= {num_prompt - 1 + j for j in indices}
    return torch.tensor(sorted(position for position in chosen if position < length), dtype=torch.long)


def edit(probe: Probe, spec: SteeringSpec, x: Tensor, nearest: list[float]) -> Tensor:
    """The steered residual stream of x [n, d] float64, by the definitions of `naive`."""
    labels = list(probe.labels)
    weights = torch.zeros(len(labels), dtype=torch.float64)
    for label, weight in spec.avoid.items():
        weights[labels.index(label)] += weight
    for label, weight in spec.target.items():
        weights[labels.index(label)] -= weight
    if spec.method == "add":
        return naive.add(x, probe.label_vectors.double(), -weights, alpha=spec.alpha or 0.0)
    std, mean = probe.input_std.double(), probe.input_mean.double()
    w1 = probe.w1.double() / std
    raw = naive.ProbeWeights(
        w1=w1,
        b1=probe.b1.double() - w1 @ mean,
        w2=probe.w2.double(),
        b2=probe.b2.double(),
        w3=probe.w3.double(),
        b3=probe.b3.double(),
    )
    if spec.method in ("reflect", "project"):
        nearest[0] = min(nearest[0], _kink_distance(x, raw))
        return naive.reflect(x, raw, weights, factor=2.0 if spec.method == "reflect" else 1.0)
    for t in range(spec.num_steps):
        nearest[0] = min(nearest[0], _kink_distance(x, raw))
        size = (spec.alpha or 0.0) * spec.step_decay**t
        x = naive.gradient_steps(x, raw, weights, alpha=size, num_steps=1)
    return x


def _kink_distance(x: Tensor, probe: naive.ProbeWeights) -> float:
    z1 = x @ probe.w1.T + probe.b1
    z2 = torch.relu(z1) @ probe.w2.T + probe.b2
    return min(float(z1.abs().min()), float(z2.abs().min()))


def _hook(
    probe: Probe, spec: SteeringSpec, positions: Tensor, nearest: list[float]
) -> Callable[[torch.nn.Module, Any, Any], Any]:
    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if len(positions):
            hidden = hidden.clone()
            hidden[0, positions] = edit(probe, spec, hidden[0, positions].double(), nearest).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook
