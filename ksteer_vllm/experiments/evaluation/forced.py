"""What an edit does to a given text: how far it moves the stream, and how next-token probabilities change.

The unsteered replies are run again with the edit switched on over the reply, without generating anything: so
all variants are measured on the same tokens, and cheaply.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.engines import reading_params
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.data.positions import encode_prompt, encode_reply
from ksteer_vllm.experiments.evaluation.side_effects import NextTokens, mean_kl
from ksteer_vllm.report import report

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["EXACT_UP_TO", "TOP_TOKENS", "ForcedReader", "ForcedText", "Moved"]

EXACT_UP_TO = 2048
"""Vocabularies up to this size are compared whole, larger ones by their likeliest tokens."""

TOP_TOKENS = 20
MAX_POSITIONS = 32
_CHUNK = 256


@dataclass(frozen=True)
class ForcedText:
    """A prompt's tokens and those of the unsteered reply to it, its first 32 at most."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]


@dataclass(frozen=True)
class Moved:
    """shift: mean |x' - x| / |x| over the edited positions. kl: mean KL(steered || unsteered) of the next
    token over the reply, in nats."""

    shift: float
    kl: float = math.nan


class ForcedReader:
    """Runs texts under specs on a bench, whose engine's `max_logprobs` must allow for the vocabulary up to
    `EXACT_UP_TO` tokens, else for `TOP_TOKENS`.

    on_prompt: probes whose edits act on the prompt by default (`default_where`); theirs stay there.
    """

    def __init__(self, bench: Bench, on_prompt: Collection[str] = ()) -> None:
        self._bench, self._llm = bench, bench.llm
        self._on_prompt = frozenset(on_prompt)
        vocabulary = self._llm.llm_engine.model_config.get_vocab_size()
        self.exact = vocabulary <= EXACT_UP_TO
        self._count = vocabulary if self.exact else TOP_TOKENS
        self._unsteered: dict[ForcedText, list[NextTokens]] = {}

    def text(self, reply: Reply) -> ForcedText | None:
        """The text of an unsteered reply; None if the reply is empty."""
        if not reply.text.strip():
            return None
        tokenizer = self._llm.get_tokenizer()
        prompt, tokens = encode_prompt(tokenizer, reply.job.prompt), encode_reply(tokenizer, reply.text)
        return ForcedText(tuple(prompt), tuple(tokens[:MAX_POSITIONS])) if tokens else None

    def read(
        self,
        texts: Sequence[ForcedText],
        specs: Sequence[Mapping[str, Any]],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
        description: str = "reading",
        kl: bool = True,
    ) -> list[Moved]:
        """Run one text under one spec each. What the journal has is not run again. kl: whether to measure it;
        otherwise it is NaN."""
        keys = [self._key(text, spec, kl) for text, spec in zip(texts, specs, strict=True)]
        found: dict[str, Moved] = {
            key: Moved(**journal[key]) for key in keys if journal is not None and key in journal
        }
        todo = {key: at for at, key in enumerate(keys) if key not in found}
        task = progress.add_task(description, total=len(todo)) if progress and todo else None
        if kl:
            self._read_unsteered({texts[at]: None for at in todo.values()})
        items = list(todo.items())
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            requests = [(texts[at], self._over_the_reply(texts[at], specs[at])) for _, at in chunk]
            outputs = self._run(requests, logprobs=kl)
            for (key, at), output in zip(chunk, outputs, strict=True):
                text = texts[at]
                away = mean_kl(_distributions(output, text), self._unsteered[text]) if kl else math.nan
                found[key] = Moved((report(output) or {}).get("mean_shift") or 0.0, away)
                if journal is not None:
                    journal.add(key, {"shift": found[key].shift, **({"kl": away} if kl else {})})
            if progress is not None and task is not None:
                progress.advance(task, len(chunk))
        return [found[key] for key in keys]

    def _key(self, text: ForcedText, spec: Mapping[str, Any], kl: bool) -> str:
        forced = {"forced": [text.prompt, text.reply], "top": self._count if kl else 0}
        return self._bench.key(Job("", spec, tags=forced), scored=False)

    def _over_the_reply(self, text: ForcedText, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The spec where the reply is part of the prompt: the same positions as when it is generated."""
        if spec["probe"] in self._on_prompt:
            return {**spec, "report": True}
        return {**spec, "where": {"prompt": [len(text.prompt) - 1, None]}, "report": True}

    def _read_unsteered(self, texts: Mapping[ForcedText, None]) -> None:
        new = [text for text in texts if text not in self._unsteered]
        for text, output in zip(new, self._run([(text, None) for text in new], logprobs=True), strict=True):
            self._unsteered[text] = _distributions(output, text)

    def _run(
        self, requests: Sequence[tuple[ForcedText, Mapping[str, Any] | None]], *, logprobs: bool
    ) -> list[Any]:
        if not requests:
            return []
        sampling = [
            reading_params(
                spec=spec, prompt_logprobs=self._count if logprobs else None, flat_logprobs=logprobs
            )
            for _, spec in requests
        ]
        prompts = [{"prompt_token_ids": [*text.prompt, *text.reply]} for text, _ in requests]
        outputs: list[Any] = self._llm.generate(prompts, sampling, use_tqdm=False)
        return outputs


def _distributions(output: Any, text: ForcedText) -> list[NextTokens]:
    """The next-token distributions that the reply's tokens were drawn from."""
    flat = output.prompt_logprobs
    return [
        NextTokens.of(flat.token_ids[low:high], flat.logprobs[low:high])
        for low, high in zip(
            flat.start_indices[len(text.prompt) :], flat.end_indices[len(text.prompt) :], strict=True
        )
    ]
