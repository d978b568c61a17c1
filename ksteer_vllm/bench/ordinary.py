"""How likely the unsteered model finds text it did not write: the labelled replies of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ksteer_vllm.bench.engines import reading_params
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.runner import ReadingRunner
from ksteer_vllm.data.positions import encode_row
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.data.split import without_instruction

__all__ = ["MOST_LABELLED", "labelled_replies", "perplexities"]

MOST_LABELLED = 100
"""Labelled replies that are read, at most."""


def labelled_replies(rows: Sequence[LabelledRow], labels: Sequence[str]) -> list[LabelledRow]:
    """Evenly spread rows that have a reply and one of the labels, without their instructions."""
    found = [row for row in rows if row.reply is not None and not set(labels).isdisjoint(row.labels)]
    step = max(1, -(-len(found) // MOST_LABELLED))
    return [without_instruction(row) for row in found[::step]]


def perplexities(
    bench: ReadingRunner, rows: Sequence[LabelledRow], *, journal: Journal | None = None
) -> list[float]:
    """exp of the mean nll per token of every reply under its prompt; those too long for the engine left out.

    Args:
        bench: The engine, which reads unsteered.
        rows: With their replies.
        journal: Keeps what was read; what is there is not read again.
    """
    if not rows:
        return []
    keys = [bench.key(Job(row.prompt, tags={"spoken": row.spoken})) for row in rows]
    found = {key: journal[key]["nll"] for key in keys if journal is not None and key in journal}
    tokenizer, most = bench.llm.get_tokenizer(), bench.llm.llm_engine.model_config.max_model_len
    encoded = {
        key: encode_row(tokenizer, row) for key, row in zip(keys, rows, strict=True) if key not in found
    }
    fits = {key: pair for key, pair in encoded.items() if pair[1] and len(pair[0]) + len(pair[1]) < most}
    prompts = [{"prompt_token_ids": prompt + reply} for prompt, reply in fits.values()]
    sampling = [reading_params(prompt_logprobs=0) for _ in prompts]
    outputs = bench.llm.generate(prompts, sampling, use_tqdm=False) if prompts else []
    for (key, (prompt, reply)), output in zip(fits.items(), outputs, strict=True):
        read = output.prompt_logprobs[len(prompt) :]
        found[key] = -sum(at[token].logprob for at, token in zip(read, reply, strict=True)) / len(reply)
        if journal is not None:
            journal.add(key, {"nll": found[key]})
    return [math.exp(min(found[key], 700.0)) for key in keys if key in found]
