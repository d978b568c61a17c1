"""The frozen language model through which edits are fitted, and the loss they are fitted to.

An edit is a small module, x [n, d] -> x' [n, d] float32, applied to the output of one decoder block at the
positions P-1 to P-1+R of a prompt of P and a reply of R tokens: where steering the generation edits. The loss
is the mean cross-entropy of the R reply tokens and the one that ends the reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ksteer_vllm.data.positions import encode_row
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.data.split import without_instruction
from ksteer_vllm.errors import DataError
from ksteer_vllm.models import find_decoder_layers

__all__ = ["FrozenModel", "Tokens"]


@dataclass(frozen=True)
class Tokens:
    """One row as the model reads it; the reply includes the token that ends it, if the model has one."""

    prompt: Sequence[int]
    reply: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)


@dataclass(frozen=True)
class _Batch:
    """Rows padded on the right, which causal attention never sees.

    ids, attention (0 or 1) [B, T] int64; edited [B, T] bool; wanted [edited positions] the tokens after them.
    """

    ids: Tensor
    attention: Tensor
    edited: Tensor
    wanted: Tensor


class FrozenModel:
    """A transformers language model in float32, one decoder block of which can be edited.

    It is on the GPU where there is one.

    Args:
        name: A folder, or a name on the hub.
        layer: The decoder block, from 0.
        num_layers: How many blocks the model has.
        engine_options: Of `vllm.LLM`; those that say what is loaded are heeded.

    Raises:
        DecoderNotFoundError: If the stack of blocks is not found.
    """

    def __init__(
        self, name: str, layer: int, num_layers: int, engine_options: Mapping[str, Any] | None = None
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        options = engine_options or {}
        source = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        config = AutoConfig.from_pretrained(name, **source)
        capped = getattr(config, "attn_logit_softcapping", None) is not None  # PyTorch's attention ignores it
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager" if capped else "sdpa",
            **source,
        )
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(options.get("tokenizer") or name, **source)
        self.hidden_size = config.get_text_config().hidden_size
        self.longest: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.block = find_decoder_layers(self.model, num_layers)[layer]

    def encode(self, row: LabelledRow, *, system: bool) -> Tokens:
        """A row's tokens.

        Args:
            row: With a reply.
            system: Keep the system messages of a chat that has others.

        Raises:
            DataError: If the prompt or the reply has no tokens, or both together are too many.
        """
        prompt, reply = encode_row(self.tokenizer, row if system else without_instruction(row))
        for field, found in (("prompt", prompt), ("reply", reply)):
            if not found:
                raise DataError(f"{field}: no tokens")
        end = self.tokenizer.eos_token_id
        tokens = Tokens(prompt, reply if end is None else [*reply, end])
        if self.longest is not None and len(tokens) > self.longest + 1:
            raise DataError(f"prompt and reply have {len(tokens)} tokens; the model takes {self.longest}")
        return tokens

    def loss(self, rows: Sequence[Tokens], edit: nn.Module | None) -> Tensor:
        """Mean cross-entropy per reply token, with the edit in place or without one."""
        batch = self._batch(rows)
        with self._editing(edit, batch.edited):
            output = self.model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        return cross_entropy(output.logits[batch.edited], batch.wanted)

    @torch.no_grad()
    def mean_loss(self, rows: Sequence[Tokens], edit: nn.Module | None, batch_size: int = 32) -> float:
        """The loss over all rows, every reply token counting the same."""
        ordered = sorted(rows, key=len)
        total = 0.0
        for start in range(0, len(ordered), batch_size):
            some = ordered[start : start + batch_size]
            total += self.loss(some, edit).item() * sum(len(row.reply) for row in some)
        return total / sum(len(row.reply) for row in rows)

    @torch.no_grad()
    def stream(self, rows: Sequence[Tokens]) -> Tensor:
        """The residual stream after the block at all edited positions of the rows, [N, d] float32."""
        watch = _Watch()
        for row in rows:
            self.loss([row], watch)
        return torch.cat(watch.seen)

    def _batch(self, rows: Sequence[Tokens]) -> _Batch:
        width = max(map(len, rows)) - 1
        ids = torch.zeros((len(rows), width), dtype=torch.int64)
        attention, edited = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for index, row in enumerate(rows):
            end = len(row) - 1
            ids[index, :end] = torch.tensor([*row.prompt, *row.reply[:-1]])
            attention[index, :end] = 1
            edited[index, len(row.prompt) - 1 : end] = True
        wanted = torch.tensor([token for row in rows for token in row.reply])
        return _Batch(*(tensor.to(self.device) for tensor in (ids, attention, edited, wanted)))

    @contextmanager
    def _editing(self, edit: nn.Module | None, edited: Tensor) -> Iterator[None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            changed = hidden.clone()
            if edit is not None:
                changed[edited] = edit(hidden[edited])
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = self.block.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class _Watch(nn.Module):
    """An edit that changes nothing and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x
