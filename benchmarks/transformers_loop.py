"""Steering as it is usually done: one call at a time on transformers, with a forward hook that edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ksteer_kernels.reference.mlp import MLPWeights, loss_gradient, probe_logits
from ksteer_vllm import Probe
from ksteer_vllm.probes.fold import fold_mlp

__all__ = ["HookedModel", "weights_of"]


def weights_of(probe: Probe) -> MLPWeights:
    """The probe on the raw residual stream, float32."""
    return MLPWeights(*(tensor.float() for tensor in vars(fold_mlp(probe.tensors)).values()))


class HookedModel:
    """A Llama in float32 whose decoder layers can be steered, one request at a time, greedy."""

    def __init__(self, folder: Path, probe: Probe, reader: Probe) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None  # every reply has all its tokens
        self._probe = weights_of(probe)
        self._reader, self._reader_layer = weights_of(reader), reader.metadata.layer

    @torch.no_grad()
    def reply(
        self,
        prompt: list[int],
        tokens: int,
        *,
        layer: int,
        label_weights: Tensor,
        alpha: float,
        num_steps: int,
    ) -> list[int]:
        """`tokens` greedy tokens, each forward pass's last position steered at the output of a layer."""

        def edit(module: Any, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            x = hidden[:, -1]
            for _ in range(num_steps):
                x = x - alpha * loss_gradient(x, self._probe, label_weights)
            hidden[:, -1] = x

        hook = self._model.model.layers[layer].register_forward_hook(edit)
        try:
            out = self._model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
        finally:
            hook.remove()
        found: list[int] = out[0, len(prompt) :].tolist()
        return found

    @torch.no_grad()
    def score(self, prompt: list[int], reply: list[int]) -> tuple[float, list[float]]:
        """Mean negative log-likelihood of the reply, and the reader's mean logits over its positions, both
        of the unsteered model."""
        first, ids = len(prompt), torch.tensor([prompt + reply])
        out = self._model(ids, output_hidden_states=True)
        logprobs = out.logits[0, first - 1 : -1].log_softmax(-1)
        nll = -logprobs.gather(1, ids[0, first:, None]).mean().item()
        stream = out.hidden_states[self._reader_layer + 1][0, first - 1 :]
        return nll, probe_logits(stream, self._reader).mean(0).tolist()
