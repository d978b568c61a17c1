"""The oracle: the same weights in transformers, with a hook that edits one decoder block's output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ksteer_vllm.models import find_decoder_layers
from ksteer_vllm.verify.edits import EditPlan, edited
from ksteer_vllm.verify.subject import Answer

__all__ = ["Oracle"]


class Oracle:
    """A model folder (or name) in float32 on the CPU; edits in float64.

    It shares no code with the engine but the probe's tensors and the methods' definitions. num_layers: of
    its decoder. Raises OSError if there is no such model, DecoderNotFoundError if its blocks are not
    found, MemoryError if its weights do not fit, and what transformers raises.
    """

    def __init__(self, model: str, num_layers: int, **source: Any) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        config = AutoConfig.from_pretrained(model, **source)
        with _ordinary_classes(model):
            _check_memory(config, bool(source.get("trust_remote_code")))
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                model, config=config, dtype=torch.float32, attn_implementation="eager", **source
            ).eval()
        inner = getattr(self._model, self._model.base_model_prefix, self._model)
        inner.do_not_compile = True  # vLLM's transformers backend looks for it
        self._blocks = find_decoder_layers(self._model, num_layers)
        self.num_layers = num_layers

    @torch.no_grad()
    def log_probs(
        self,
        prompt: Sequence[int],
        generated: Sequence[int],
        plan: EditPlan | None = None,
        positions: Sequence[int] = (),
        layer: int | None = None,
    ) -> Tensor:
        """Log-probabilities [len(generated), vocabulary] float64 of the tokens after the prompt.

        plan: the edit of the tokens at these absolute positions, at its own layer or where `layer` says.
        """
        tokens = torch.tensor([[*prompt, *generated[:-1]]])
        at = torch.tensor([p for p in positions if p < tokens.shape[1]], dtype=torch.long)

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            assert plan is not None
            moved = edited(plan, hidden[0, at].double())
            assert moved is not None, "the caller asks whether the method is defined"
            changed = hidden.clone()
            changed[0, at] = moved.to(hidden.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = None
        if plan is not None and len(at):
            block = self._blocks[plan.layer if layer is None else layer]
            handle = block.register_forward_hook(hook)
        try:
            logits = self._model(tokens, use_cache=False).logits[0]
        finally:
            if handle is not None:
                handle.remove()
        return torch.log_softmax(logits[len(prompt) - 1 :].double(), -1)

    def apart(
        self,
        prompt: Sequence[int],
        answer: Answer,
        plan: EditPlan | None = None,
        positions: Sequence[int] = (),
        layer: int | None = None,
    ) -> float:
        """The largest difference of what the engine answered from `log_probs`, teacher-forced."""
        expected = self.log_probs(prompt, answer.tokens, plan, positions, layer)
        return max(
            abs(log_prob - float(expected[step, token]))
            for step, found in enumerate(answer.steps)
            for token, log_prob in found.items()
        )


def _check_memory(config: Any, trust_remote_code: bool) -> None:
    """Raises MemoryError if the weights in float32 are larger than the memory that is free."""
    import psutil
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=trust_remote_code)
    needs = sum(weight.numel() for weight in model.parameters()) * torch.float32.itemsize
    free = psutil.virtual_memory().available
    if needs > free:
        raise MemoryError(f"in float32 it takes {needs / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")


def _ordinary_classes(model: str) -> Any:
    """Where vLLM runs in this process it may have changed transformers' classes for its own use."""
    import sys

    if "vllm" not in sys.modules:
        return nullcontext()
    from ksteer_vllm.host.inspection import eager_context

    return eager_context(model)
