"""A tiny chat model and labelled text for it, shared by the fitting tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.engines import prepare_environment

prepare_environment()

from ksteer_vllm.data.rows import LabelledRow  # noqa: E402
from testbed.models import VOCAB_SIZE, make_model  # noqa: E402

LABELS = ("warm", "dry")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("fit") / "llama")


@pytest.fixture(scope="session")
def rows() -> list[LabelledRow]:
    return make_rows(90)


def make_rows(count: int) -> list[LabelledRow]:
    """Replies whose words depend on their labels, to chats and to plain prompts."""
    rng = random.Random(0)
    words = range(4, VOCAB_SIZE)
    found = []
    for index in range(count):
        labels = tuple(label for label in LABELS if rng.random() < 0.5)
        first = 20 + 10 * ("warm" in labels) + 20 * ("dry" in labels)
        vocabulary = range(first, first + 4)
        question = " ".join(f"w{rng.choice(words)}" for _ in range(rng.randint(3, 40)))
        chat = [{"role": "w9", "content": "w10 w11"}, {"role": "w12", "content": question}]
        found.append(
            LabelledRow.model_validate(
                {
                    "prompt": chat if index % 2 else question,
                    "reply": " ".join(f"w{rng.choice(vocabulary)}" for _ in range(rng.randint(1, 25))),
                    "labels": labels,
                }
            )
        )
    return found
