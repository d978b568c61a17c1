"""Sampling from the demo model with transformers, and what the reader finds in the samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ksteer_vllm.bench.jobs import MAX_TOKENS
from ksteer_vllm.demo.corpus import Question, draw_tones, instruction_for
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.reader import read
from ksteer_vllm.demo.tokenizer import encode_prompt


@dataclass(frozen=True)
class ReplyStatistics:
    """Shares over a set of replies.  ``followed`` is the share that shows exactly the tones asked for."""

    count: int
    well_formed: float
    tone_rates: dict[str, float]
    asked_tones: float | None = None
    followed: float | None = None


@torch.no_grad()
def sample_replies(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    seed: int = 0,
    max_new_tokens: int = MAX_TOKENS,
    batch_size: int = 100,
) -> list[tuple[str, bool]]:
    """A reply to every prompt, and whether it ended by itself.  Temperature 0 is greedy."""
    torch.manual_seed(seed)
    replies: list[tuple[str, bool]] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + list(p) for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        sampling: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            sampling |= {"temperature": temperature, "top_k": 0}
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
        for row in output[:, width:].tolist():
            finished = tokenizer.eos_token_id in row
            kept = row[: row.index(tokenizer.eos_token_id)] if finished else row
            replies.append((tokenizer.decode(kept, skip_special_tokens=False), finished))
    return replies


def measure(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    instructed: bool,
    temperature: float,
    seed: int = 0,
) -> ReplyStatistics:
    """Sample one reply per question and read it; if instructed, the tones asked for are drawn at random."""
    rng = random.Random(seed)
    asked = [draw_tones(rng) if instructed else frozenset[str]() for _ in questions]
    prompts = [
        encode_prompt(tokenizer, question.text, instruction_for(tones, rng) if instructed else None)
        for question, tones in zip(questions, asked, strict=True)
    ]
    replies = sample_replies(model, tokenizer, prompts, temperature=temperature, seed=seed)
    readings = [
        read(question.text, reply, finished=finished)
        for question, (reply, finished) in zip(questions, replies, strict=True)
    ]
    count = len(readings)
    hits = sum(len(tones & reading.tones) for tones, reading in zip(asked, readings, strict=True))
    exact = sum(tones == reading.tones for tones, reading in zip(asked, readings, strict=True))
    return ReplyStatistics(
        count=count,
        well_formed=sum(reading.well_formed for reading in readings) / count,
        tone_rates={tone: sum(tone in reading.tones for reading in readings) / count for tone in TONES},
        asked_tones=hits / sum(map(len, asked)) if instructed else None,
        followed=exact / count if instructed else None,
    )
