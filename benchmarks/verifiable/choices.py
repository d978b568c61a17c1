"""What the model still knows: multiple choice, by the log-probability of each option after the question.

The items (`choices.jsonl`) are the project's own: common knowledge, common sense, the meaning of words and
small sums, of a kind that a model of 135 million parameters mostly gets right. An option's score is the mean
log-probability of its tokens as the reply to the bare question; the highest wins, and chance is one in four.
SmolLM2-135M-Instruct in bfloat16, unsteered, gets 79 of the 120 right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.verifiable.forced import forced_spec
from ksteer_vllm.bench.engines import reading_params
from ksteer_vllm.data.positions import encode_prompt, encode_reply
from ksteer_vllm.data.rows import Message

__all__ = ["CHANCE", "CHOICES", "Choice", "correct", "option_scores", "read_choices"]

CHOICES = Path(__file__).with_name("choices.jsonl")
OPTIONS = 4
CHANCE = 1 / OPTIONS


class Choice(BaseModel):
    """One item.

    Attributes:
        options: Four different answers.
        answer: The index of the right one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["knowledge", "commonsense", "words", "arithmetic"]
    question: Annotated[str, Field(min_length=1)]
    options: Annotated[tuple[str, ...], Field(min_length=OPTIONS, max_length=OPTIONS)]
    answer: Annotated[int, Field(ge=0, lt=OPTIONS)]


def read_choices(file: Path = CHOICES) -> tuple[Choice, ...]:
    """The items of a file, one JSON object a line."""
    return tuple(Choice.model_validate_json(line) for line in file.read_text("utf-8").splitlines())


def option_scores(
    llm: Any, choices: Sequence[Choice], spec: Mapping[str, Any] | None = None
) -> NDArray[np.float64]:
    """Mean log-probability per token of every option, in nats.

    Args:
        llm: A running engine.
        choices: The items.
        spec: How the reply is steered, as JSON, with its where-clause if the probe has a default one; None:
            not at all. Every option is steered where a generation would be, see `forced_spec`.

    Returns:
        [items, 4].
    """
    tokenizer = llm.get_tokenizer()
    texts, starts, sampling = [], [], []
    for choice in choices:
        prompt = encode_prompt(tokenizer, (Message(role="user", content=choice.question),))
        edit = None if spec is None else forced_spec(spec, len(prompt))
        for option in choice.options:
            texts.append([*prompt, *encode_reply(tokenizer, option)])
            starts.append(len(prompt))
            sampling.append(reading_params(spec=edit, prompt_logprobs=0))
    outputs = llm.generate([{"prompt_token_ids": text} for text in texts], sampling, use_tqdm=False)
    means = [
        np.mean([output.prompt_logprobs[at][text[at]].logprob for at in range(start, len(text))])
        for output, text, start in zip(outputs, texts, starts, strict=True)
    ]
    return np.asarray(means, np.float64).reshape(len(choices), OPTIONS)


def correct(choices: Sequence[Choice], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the right option has the highest score.

    Args:
        choices: The items.
        scores: [items, 4], see `option_scores`.

    Returns:
        [items].
    """
    return np.asarray(scores.argmax(1) == [choice.answer for choice in choices])
