"""Residual-stream vectors of replies, recorded inside the vLLM engine that will be steered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import load as load_tensors
from torch import Tensor

from ksteer_vllm.capture import CAPTURE_KEY
from ksteer_vllm.config import enable
from ksteer_vllm.fit.data import DataError, LabelledRow
from ksteer_vllm.probe import ModelIdentity

__all__ = [
    "REPLY",
    "Activations",
    "FirstPositions",
    "ReplyPositions",
    "Window",
    "collect_activations",
    "default_layer",
    "encode_row",
    "model_of",
]

CHUNK_ROWS = 256


@dataclass(frozen=True)
class ReplyPositions:
    """Prompt (P tokens) and reply (R tokens); recorded are the positions that steering generation edits."""

    text: str = (
        "P-1 to P-1+R: the forward passes that produce the R reply tokens and the one that ends the reply"
    )

    def of(self, tokenizer: Any, row: LabelledRow) -> tuple[list[int], int, int]:
        """The tokens to run, and the half-open range of positions to record."""
        prompt, reply = encode_row(tokenizer, row)
        for name, tokens in (("prompt", prompt), ("reply", reply)):
            if not tokens:
                raise DataError(f"{name}: no tokens")
        return prompt + reply, len(prompt) - 1, len(prompt) + len(reply)


@dataclass(frozen=True)
class FirstPositions:
    """The reply's text alone, as a text prompt; recorded are its first `count` tokens.

    Leading special tokens (a beginning-of-sequence token) are not counted and not recorded: they are the
    same for every text, and so is the residual stream there. A trailing one is left off.
    """

    count: int

    @property
    def text(self) -> str:
        return f"the first {self.count} tokens of the text alone, after leading special tokens"

    def of(self, tokenizer: Any, row: LabelledRow) -> tuple[list[int], int, int]:
        """The tokens to run, and the half-open range of positions to record."""
        tokens = list(tokenizer.encode(row.reply))
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        own = [index for index, token in enumerate(tokens) if token not in special]
        if not own:
            raise DataError("reply: no tokens")
        first, end = own[0], min(own[0] + self.count, own[-1] + 1)
        return tokens[:end], first, end


Window = ReplyPositions | FirstPositions
REPLY = ReplyPositions()


@dataclass(frozen=True)
class Activations:
    """The residual stream at the output of some layers, one vector per recorded position.

    streams: layer -> [N, d] float32. row: [N] int64, the row each vector comes from, ascending.
    position: [N] int64, its position among the tokens that were run.
    """

    streams: dict[int, Tensor]
    row: Tensor
    position: Tensor
    model: ModelIdentity


def model_of(model: str, engine_options: Mapping[str, Any] | None = None) -> ModelIdentity:
    """What vLLM takes `model` to be, from its configuration alone."""
    from vllm.engine.arg_utils import EngineArgs

    from ksteer_vllm.host.settings import model_identity

    return model_identity(EngineArgs(model=model, **(engine_options or {})).create_model_config())


def default_layer(num_layers: int) -> int:
    """The decoder block at 60 % of the depth."""
    return min(int(0.6 * num_layers), num_layers - 1)


def encode_row(tokenizer: Any, row: LabelledRow) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the reply, as in serving: each is encoded on its own."""
    if isinstance(row.prompt, str):
        prompt = tokenizer.encode(row.prompt)
    else:
        messages = [message.model_dump() for message in row.prompt]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer.encode(text, add_special_tokens=False)
    return list(prompt), list(tokenizer.encode(row.reply, add_special_tokens=False))


def collect_activations(
    model: str,
    rows: Sequence[LabelledRow],
    layers: Sequence[int],
    *,
    window: Window = REPLY,
    engine_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Run every row through a vLLM engine and keep the residual stream at the positions of `window`.

    All layers are recorded in one pass. engine_options: further arguments of `vllm.LLM`. Raises DataError
    for a row that does not fit the engine or gives values that are not finite, ConfigError for a layer the
    model does not have.
    """
    from vllm import LLM, SamplingParams

    ours = {
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "additional_config": enable(capture={"layers": sorted(set(layers))}),
    }
    llm = LLM(model, **{"use_tqdm_on_load": False, **(engine_options or {}), **ours})
    try:
        identity = model_of_engine(llm)
        tokenizer = llm.get_tokenizer()
        encoded = _encode(tokenizer, rows, window, llm.llm_engine.model_config.max_model_len)
        task = progress.add_task("recording activations", total=len(rows)) if progress else None
        pieces: dict[int, list[Tensor]] = {layer: [] for layer in sorted(set(layers))}
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = encoded[start : start + CHUNK_ROWS]
            sampling = [
                SamplingParams(
                    max_tokens=1,
                    temperature=0.0,
                    detokenize=False,
                    extra_args={CAPTURE_KEY: {"id": str(index), "start": first, "end": end}},
                )
                for index, (_, first, end) in enumerate(chunk)
            ]
            prompts = [{"prompt_token_ids": tokens} for tokens, _, _ in chunk]
            llm.generate(prompts, sampling, use_tqdm=False)
            captured = _merge(llm.collective_rpc("ksteer_take_captures"))
            for index, (_, first, end) in enumerate(chunk):
                for layer, collected in pieces.items():
                    collected.append(_checked(captured, layer, index, end - first, start + index))
            if progress is not None and task is not None:
                progress.advance(task, len(chunk))
    finally:
        shut_down(llm)
    counts = torch.tensor([end - first for _, first, end in encoded])
    return Activations(
        streams={layer: torch.cat(streams) for layer, streams in pieces.items()},
        row=torch.repeat_interleave(torch.arange(len(rows)), counts),
        position=torch.cat([torch.arange(first, end) for _, first, end in encoded]),
        model=identity,
    )


def model_of_engine(llm: Any) -> ModelIdentity:
    """The identity of a running engine's model."""
    from ksteer_vllm.host.settings import model_identity

    return model_identity(llm.llm_engine.model_config)


def shut_down(llm: Any) -> None:
    """Stop an engine, its processes included, and release what it holds."""
    llm.llm_engine.engine_core.shutdown()


def _encode(
    tokenizer: Any, rows: Sequence[LabelledRow], window: Window, max_model_len: int
) -> list[tuple[list[int], int, int]]:
    """Per row its tokens and the positions to record. Raises DataError naming a row that does not fit."""
    encoded = []
    for index, row in enumerate(rows, start=1):
        try:
            found = window.of(tokenizer, row)
        except DataError as error:
            raise DataError(f"row {index}: {error}") from None
        if len(found[0]) + 1 > max_model_len:
            raise DataError(
                f"row {index}: prompt and reply have {len(found[0])} tokens; "
                f"the engine holds {max_model_len} with the one it generates"
            )
        encoded.append(found)
    return encoded


def _merge(results: Sequence[bytes]) -> dict[str, Tensor]:
    """What every worker recorded: tensor-parallel workers agree, pipeline workers hold different layers."""
    captured: dict[str, Tensor] = {}
    for result in results:
        if result:
            captured.update(load_tensors(result))
    return captured


def _checked(captured: Mapping[str, Tensor], layer: int, index: int, length: int, row: int) -> Tensor:
    stream = captured.get(f"{layer}/{index}")
    if stream is None or len(stream) != length:
        found = 0 if stream is None else len(stream)
        raise RuntimeError(f"row {row + 1}: layer {layer} recorded {found} of {length} positions")
    if not torch.isfinite(stream).all():
        raise DataError(f"row {row + 1}: the residual stream after layer {layer} is not finite")
    return stream
