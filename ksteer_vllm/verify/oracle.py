"""The oracle: the same weights in Hugging Face transformers, with hooks that edit decoder blocks' outputs.

It shares no code with the engine beyond the definitions in x-space: windows applied to absolute positions,
the whole sequence in one forward pass, the edit in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ksteer_vllm.models import find_decoder_layers
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec import SteeringSpec
from ksteer_vllm.spec.edit import Edit
from ksteer_vllm.verify.definitions import apply_edit
from ksteer_vllm.verify.edits import PlannedEdit
from ksteer_vllm.verify.subject import Answer

__all__ = ["BlockEdit", "Oracle", "block_edits", "steered_positions"]


@dataclass(frozen=True)
class BlockEdit:
    """An edit of some tokens at the output of one decoder block.

    Args:
        edit: One edit of a spec, with its method given.
        positions: Absolute token positions, ascending.
        layer: The layer whose tensors of the probe are used.
        block: The decoder block where it acts: the layer, except to see what an edit at a wrong block does.
    """

    edit: Edit
    positions: Sequence[int]
    layer: int
    block: int


class Oracle:
    """A model in float32 on the CPU; edits in float64.

    Args:
        model: A folder, or a name transformers knows.
        num_layers: How many decoder blocks it has.
        probes: Name -> the probes that edits may use, as fitted.
        source: Options of transformers' `from_pretrained`, such as trust_remote_code.

    Raises:
        OSError: If there is no such model.
        DecoderNotFoundError: If its decoder blocks are not found.
        MemoryError: If its weights do not fit into the free memory.
        Exception: Whatever transformers, or the model's own code, raises.
    """

    def __init__(
        self, model: str, num_layers: int, probes: Mapping[str, Probe] | None = None, **source: Any
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        config = AutoConfig.from_pretrained(model, **source)
        with _ordinary_classes(model):
            _check_memory(config, bool(source.get("trust_remote_code")))
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                model, config=config, dtype=torch.float32, attn_implementation="eager", **source
            ).eval()
        inner = getattr(self.model, self.model.base_model_prefix, self.model)
        inner.do_not_compile = True  # vLLM's transformers backend looks for it
        self.blocks = find_decoder_layers(self.model, num_layers)
        self.num_layers = num_layers
        self._probes = dict(probes or {})

    @torch.no_grad()
    def log_probs(
        self, prompt: Sequence[int], generated: Sequence[int], edits: Sequence[BlockEdit] = ()
    ) -> tuple[Tensor, float]:
        """The model's log-probabilities of a reply, teacher-forced.

        Args:
            prompt: Token ids.
            generated: The reply's token ids; the last one does not go through the model.
            edits: Applied in order.

        Returns:
            Log-probabilities [len(generated), vocabulary] float64, and how near a token came to a kink of its
            edit (infinite without one).
        """
        tokens = torch.tensor([[*prompt, *generated[:-1]]])
        kinks = [math.inf]
        with ExitStack() as stack:
            for edit in edits:
                hook = self._hook(edit, len(prompt), tokens.shape[1], kinks)
                stack.callback(self.blocks[edit.block].register_forward_hook(hook).remove)
            logits = self.model(tokens, use_cache=False).logits[0]
        return torch.log_softmax(logits[len(prompt) - 1 :].double(), -1), min(kinks)

    def apart(
        self,
        prompt: Sequence[int],
        answer: Answer,
        plan: PlannedEdit | None = None,
        positions: Sequence[int] = (),
        layer: int | None = None,
    ) -> float:
        """The largest difference between the engine's log-probabilities and the oracle's, in nats.

        Args:
            prompt: Token ids.
            answer: The engine's answer.
            plan: The edit, or None for a plain request.
            positions: The absolute positions it edits, ascending.
            layer: The block it acts at; default: its own.
        """
        edits = []
        if plan is not None:
            edits.append(
                BlockEdit(plan.edit(), positions, plan.layer, plan.layer if layer is None else layer)
            )
        expected, _ = self.log_probs(prompt, answer.tokens, edits)
        return max(
            abs(log_prob - float(expected[step, token]))
            for step, found in enumerate(answer.steps)
            for token, log_prob in found.items()
        )

    def _hook(
        self, asked: BlockEdit, num_prompt: int, length: int, kinks: list[float]
    ) -> Callable[[Any, Any, Any], Any]:
        at = torch.tensor([p for p in asked.positions if p < length], dtype=torch.long)

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            if not len(at):
                return output
            hidden = output[0] if isinstance(output, tuple) else output
            x, index = hidden[0, at].double(), at - (num_prompt - 1)
            moved, kink = apply_edit(self._probes, asked.edit, x, asked.layer, index)
            kinks.append(kink)
            changed = hidden.clone()
            changed[0, at] = moved.to(hidden.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook


def block_edits(
    spec: SteeringSpec, probes: Mapping[str, Probe], num_prompt: int, length: int
) -> list[BlockEdit]:
    """A spec's edits, block by block.

    Args:
        spec: With the method of every edit given.
        probes: Name -> probe, as fitted.
        num_prompt: Tokens of the prompt.
        length: Tokens of the whole sequence, prompt included.

    Returns:
        One entry per edit and layer, in order.
    """
    found = []
    for edit in spec.edits():
        metadata = probes[edit.probe].metadata
        positions = steered_positions(edit, metadata.default_where, num_prompt, length)
        for layer in edit.layers or metadata.layers or (metadata.layer,):
            found.append(BlockEdit(edit, positions, layer, layer))
    return found


def steered_positions(edit: Edit, default_where: Any, num_prompt: int, length: int) -> list[int]:
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
        chosen |= {num_prompt - 1 + j for j in range(start, length if end is None else end)}
    return sorted(position for position in chosen if position < length)


def _check_memory(config: Any, trust_remote_code: bool) -> None:
    """Raise MemoryError if the weights in float32 do not fit into the free memory."""
    import psutil
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=trust_remote_code)
    needs = sum(weight.numel() for weight in model.parameters()) * torch.float32.itemsize
    free = psutil.virtual_memory().available
    if needs > free:
        raise MemoryError(f"in float32 it takes {needs / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free")


def _ordinary_classes(model: str) -> Any:
    """A context with transformers' own classes, which vLLM may have changed in this process."""
    import sys

    if "vllm" not in sys.modules:
        return nullcontext()
    from ksteer_vllm.host.inspection import eager_context

    return eager_context(model)
