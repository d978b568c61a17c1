"""How far an edit changes the model where nothing was asked for: the exact KL of the next token.

The unsteered replies to neutral questions are run again under the edit, generating nothing, so that all
methods are measured on the same text. The divergence is over the whole vocabulary, and cheap: the engine
records the residual stream after its last block, from which its own final norm and output matrix give, in
float32, the logits of all tokens at once. Asked for the log-probability of every token, the engine says the
same (a test compares the two), but one Python object each: 49,152 a position.

It holds for models of the Llama architecture, whose logits are W norm(x), unscaled and uncapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.verifiable.forced import forced_spec
from ksteer_vllm.bench.engines import generation_params, reading_params, take_captures
from ksteer_vllm.data.positions import encode_prompt
from ksteer_vllm.data.rows import Message
from ksteer_vllm.spec.capture import capture_window

__all__ = ["GivenReply", "NeutralTexts", "divergence", "logprobs_of"]

TOKENS = 32
"""Tokens of a reply that are compared."""

_CHUNK = 128
"""Positions whose distributions are held at a time."""


@dataclass(frozen=True)
class GivenReply:
    """A question's tokens, and those of the unsteered reply to it."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]


class NeutralTexts:
    """Unsteered greedy replies to neutral questions, and the model's own next-token distributions along them.

    Args:
        llm: An engine in this process, started with steering and with its last block captured
            (`capture={"layers": [last]}`), which no spec may edit: what is recorded is x before any edit.
        questions: Texts of user messages.
        tokens: How much of each reply is compared.
    """

    def __init__(self, llm: Any, questions: Sequence[str], tokens: int = TOKENS) -> None:
        self._llm = llm
        self._layer = llm.llm_engine.model_config.hf_text_config.num_hidden_layers - 1
        tokenizer = llm.get_tokenizer()
        prompts = [encode_prompt(tokenizer, (Message(role="user", content=text),)) for text in questions]
        sampling = generation_params(temperature=0.0, max_tokens=tokens, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        self.texts = [
            GivenReply(tuple(prompt), tuple(output.outputs[0].token_ids))
            for prompt, output in zip(prompts, outputs, strict=True)
        ]
        self._unsteered = self._streams(None)

    def kl(self, spec: Mapping[str, Any]) -> NDArray[np.float64]:
        """KL(steered || unsteered) of the next token, in nats, mean over a reply's positions.

        Args:
            spec: How a generation is steered, as JSON, with its where-clause if the probe has a default one.

        Returns:
            [questions].
        """
        lengths = [len(text.reply) for text in self.texts]
        both = {"steered": torch.cat(self._streams(spec)), "unsteered": torch.cat(self._unsteered)}
        per_position: Tensor = self._llm.apply_model(partial(divergence, **both))[0]
        return np.asarray([float(part.mean()) for part in per_position.split(lengths)])

    def _streams(self, spec: Mapping[str, Any] | None) -> list[Tensor]:
        """Per text x [R, d] float32 after the last block, where each of the reply's R tokens is chosen."""
        sampling, prompts = [], []
        for index, text in enumerate(self.texts):
            first = len(text.prompt) - 1
            window = capture_window(f"neutral-{index}", first, first + len(text.reply))
            edit = None if spec is None else forced_spec(spec, len(text.prompt))
            sampling.append(reading_params(spec=edit, capture=window))
            prompts.append({"prompt_token_ids": [*text.prompt, *text.reply]})
        self._llm.generate(prompts, sampling, use_tqdm=False)
        streams = take_captures(self._llm)
        return [streams[f"{self._layer}/neutral-{index}"] for index in range(len(self.texts))]


def divergence(model: nn.Module, steered: Tensor, unsteered: Tensor) -> Tensor:
    """KL(steered || unsteered) of the next token, in nats.

    Args:
        model: What vLLM loaded, of the Llama architecture.
        steered: The residual stream after the last block [T, d] float32.
        unsteered: The same [T, d].

    Returns:
        [T] float64.
    """
    found = []
    for ours, theirs in zip(steered.split(_CHUNK), unsteered.split(_CHUNK), strict=True):
        p, q = logprobs_of(model, ours).double(), logprobs_of(model, theirs).double()
        found.append((p.exp() * (p - q)).sum(-1).clamp(min=0.0))
    return torch.cat(found)


def logprobs_of(model: nn.Module, stream: Tensor) -> Tensor:
    """Log-probabilities of every token of the vocabulary.

    Args:
        model: What vLLM loaded, of the Llama architecture.
        stream: The residual stream after the last block [T, d] float32.

    Returns:
        [T, V] float32.
    """
    parts: Any = model
    weight: Tensor = parts.lm_head.weight[: parts.config.vocab_size]
    with torch.inference_mode():
        hidden: Tensor = parts.model.norm.forward_native(stream.to(weight.device))
        return (hidden.float() @ weight.float().T).log_softmax(-1).cpu()
