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

__all__ = ["POSITIONS", "Activations", "collect_activations", "default_layer", "encode_row", "model_of"]

POSITIONS = "P-1 to P-1+R: the forward passes that produce the R reply tokens and the one that ends the reply"
"""Which positions of prompt (P tokens) and reply (R tokens) are recorded: those steering generation edits."""

CHUNK_ROWS = 256


@dataclass(frozen=True)
class Activations:
    """The residual stream at the output of some layers, one vector per recorded position.

    streams: layer -> [N, d] float32. row: [N] int64, the row each vector comes from, ascending.
    """

    streams: dict[int, Tensor]
    row: Tensor
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
    engine_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Run prompt + reply of every row through a vLLM engine and keep the residual stream of the reply.

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
        encoded = [encode_row(tokenizer, row) for row in rows]
        _check_lengths(encoded, llm.llm_engine.model_config.max_model_len)
        task = progress.add_task("recording activations", total=len(rows)) if progress else None
        pieces: dict[int, list[Tensor]] = {layer: [] for layer in sorted(set(layers))}
        counts: list[int] = []
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = encoded[start : start + CHUNK_ROWS]
            windows = [(len(prompt) - 1, len(prompt) + len(reply)) for prompt, reply in chunk]
            sampling = [
                SamplingParams(
                    max_tokens=1,
                    temperature=0.0,
                    detokenize=False,
                    extra_args={CAPTURE_KEY: {"id": str(index), "start": first, "end": end}},
                )
                for index, (first, end) in enumerate(windows)
            ]
            prompts = [{"prompt_token_ids": prompt + reply} for prompt, reply in chunk]
            llm.generate(prompts, sampling, use_tqdm=False)
            captured = _merge(llm.collective_rpc("ksteer_take_captures"))
            for index, (first, end) in enumerate(windows):
                for layer, collected in pieces.items():
                    collected.append(_checked(captured, layer, index, end - first, start + index))
                counts.append(end - first)
            if progress is not None and task is not None:
                progress.advance(task, len(chunk))
    finally:
        shut_down(llm)
    row = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
    return Activations({layer: torch.cat(streams) for layer, streams in pieces.items()}, row, identity)


def model_of_engine(llm: Any) -> ModelIdentity:
    """The identity of a running engine's model."""
    from ksteer_vllm.host.settings import model_identity

    return model_identity(llm.llm_engine.model_config)


def shut_down(llm: Any) -> None:
    """Stop an engine, its processes included, and release what it holds."""
    llm.llm_engine.engine_core.shutdown()


def _check_lengths(encoded: Sequence[tuple[list[int], list[int]]], max_model_len: int) -> None:
    for index, (prompt, reply) in enumerate(encoded):
        for field, tokens in (("prompt", prompt), ("reply", reply)):
            if not tokens:
                raise DataError(f"row {index + 1}: {field}: no tokens")
        if len(prompt) + len(reply) + 1 > max_model_len:
            raise DataError(
                f"row {index + 1}: prompt and reply have {len(prompt) + len(reply)} tokens; "
                f"the engine holds {max_model_len} with the one it generates"
            )


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
