"""The `demo` task: labelled text in the language of the shipped model, and held-out questions in it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.rows import LabelledRow, Message
from ksteer_vllm.demo.corpus import (
    HeldOut,
    held_out_questions,
    make_example,
    prompt_messages,
    train_questions,
)
from ksteer_vllm.demo.lexicon import TONES

__all__ = ["demo_task", "labelled_text"]

_ROWS: Final = 1500
_PROMPTS: Final = 100
"""Held-out questions for calibration, and as many for evaluation."""


def demo_task(*, labels: Sequence[str] = ()) -> TaskDataset:
    """The labelled text with its replies, held-out questions, and the exact reader as its judge.

    Args:
        labels: The tones to take; default: all six.
    """
    splits: dict[str, HeldOut] = {"calibration": "calibration", "evaluation": "test"}
    prompts = {
        part: [(Message(role="user", content=q.text),) for q in held_out_questions(split)[:_PROMPTS]]
        for part, split in splits.items()
    }
    rows = labelled_text()
    return TaskDataset.of("demo", rows, labels=labels or TONES, prompts=prompts, judge="reader")


def labelled_text(count: int = _ROWS, *, seed: int = 0) -> list[LabelledRow]:
    """`count` chats on training questions, whose replies show one, two or three tones, equally often.

    The instruction asks for the tones the reply shows: its labels.
    """
    rng = random.Random(seed + 1)
    questions = train_questions()
    rows = []
    for _ in range(count):
        tones = frozenset(rng.sample(TONES, rng.choice((1, 2, 3))))
        example = make_example(rng.choice(questions), rng, instructed=True, tones=tones)
        rows.append(
            LabelledRow.model_validate(
                {
                    "prompt": prompt_messages(example.question.text, example.instruction),
                    "reply": example.reply,
                    "labels": [tone for tone in TONES if tone in tones],
                }
            )
        )
    return rows
