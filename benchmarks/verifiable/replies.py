"""Replies with true labels: written under each instruction and without one, labelled by what readers find."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.verifiable.behaviours import BEHAVIOURS, asked, plain, shows
from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.data.behaviours import shipped_questions
from ksteer_vllm.data.readers import broken
from ksteer_vllm.data.rows import LabelledRow, write_rows

__all__ = ["ENGINE", "MAX_TOKENS", "write_replies"]

ENGINE: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 64, "kv_cache_memory_bytes": 1 << 30}
MAX_TOKENS = 48
TEMPERATURE = 0.8
WANTED = 60
"""Replies that show a behaviour, at most."""
ROUNDS = 3
"""Replies to each question under each instruction, at most."""


def write_replies(model: str, out: Path, progress: Progress | None = None) -> list[LabelledRow]:
    """Leave OUT/rows.jsonl: plain questions, replies, and the behaviours that readers find in the replies.

    A behaviour is asked for until WANTED replies show it, ROUNDS times at most. What is broken, or does not
    show what it was asked for, is left out.

    Returns:
        The rows.
    """
    questions = shipped_questions()
    found: list[LabelledRow] = []
    shown: Counter[str] = Counter()
    with (
        Bench(
            model, {}, engine_options=ENGINE, temperature=TEMPERATURE, max_tokens=MAX_TOKENS, scored=False
        ) as bench,
        Journal(out / "replies.jsonl", bench.identity) as journal,
    ):
        for turn in range(ROUNDS):
            jobs = [
                Job(asked((name,), question), None, turn * 1000 + k, {"asked": name, "question": question})
                for name in BEHAVIOURS
                if shown[name] < WANTED
                for k, question in enumerate(questions)
            ]
            if turn < 2:
                jobs += [
                    Job(plain(question), None, turn * 1000 + k, {"asked": "", "question": question})
                    for k, question in enumerate(questions)
                ]
            replies = bench.run(
                jobs, journal=journal, progress=progress, description=f"replies {turn + 1}", score=False
            )
            for reply in replies:
                wanted = reply.job.tags["asked"]
                labels = _labels(reply.text)
                if broken(reply.text) or (wanted and (wanted not in labels or shown[wanted] >= WANTED)):
                    continue
                shown[wanted] += 1
                found.append(
                    LabelledRow(prompt=plain(reply.job.tags["question"]), reply=reply.text, labels=labels)
                )
    write_rows(out / "rows.jsonl", found)
    return found


def _labels(text: str) -> tuple[str, ...]:
    return tuple(name for name in BEHAVIOURS if shows((name,), text))
