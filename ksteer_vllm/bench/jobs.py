"""What an experiment asks of the engine, and what it gets back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ksteer_vllm.data.rows import Message

__all__ = ["MAX_TOKENS", "SAMPLED", "Job", "Reply"]

MAX_TOKENS: Final = 96
"""Most tokens of a reply, unless a plan says otherwise."""

SAMPLED: Final = 1.0
"""Temperature of the replies that say how likely ordinary text is, whatever that of the run."""


@dataclass(frozen=True)
class Job:
    """One request.

    Attributes:
        prompt: A text, or chat messages, which go through the model's chat template.
        spec: The request's steering spec as JSON, None for an unsteered one.
        seed: Seed of the sampling; the same prompt should have the same seed however it is steered.
        tags: What its replies are grouped by (variant, targets, alpha, layer, ...), plain JSON; part of the
            key.
        temperature: Of the sampling; None: that of the bench.
        read_under: The prompt under which the reply is scored; None: the one it was written under. A reply
            to a prompt that asks for a label is read without the request, or the request is what is read.
    """

    prompt: str | tuple[Message, ...]
    spec: Mapping[str, Any] | None = None
    seed: int = 0
    tags: Mapping[str, Any] = field(default_factory=dict)
    temperature: float | None = None
    read_under: str | tuple[Message, ...] | None = None

    @property
    def key(self) -> str:
        """Names the job in a journal: a digest of everything in it."""
        what = [_plain(self.prompt), self.spec, self.seed, self.tags]
        if self.temperature is not None:
            what.append({"temperature": self.temperature})
        if self.read_under is not None:
            what.append({"read_under": _plain(self.read_under)})
        return hashlib.sha256(json.dumps(what, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @property
    def question(self) -> str:
        """The prompt's text; of a chat, its last message."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content


@dataclass(frozen=True)
class Reply:
    """The reply to a job, and how the unsteered model and the evaluation probe read it.

    `nll` and `propensity` are None where no score was asked for, or the reply is empty.

    Attributes:
        job: What was asked.
        text: The reply, without the token that ends it.
        tokens: How many were generated, the one that ends the reply not counted.
        finished: Whether it ended by itself.
        nll: Mean negative log-likelihood per token, in nats, under the unsteered model, of the reply and, if
            it finished, of its end.
        propensity: Label -> the evaluation probe's logit, mean over the reply's positions, of the text read
            by the unsteered model.
        shift: Mean |x' - x| / |x| over steered tokens, if the spec asks for a report.
        prompt_tokens: How many tokens the prompt has.
    """

    job: Job
    text: str
    tokens: int
    finished: bool
    nll: float | None = None
    propensity: Mapping[str, float] | None = None
    shift: float | None = None
    prompt_tokens: int | None = None


def _plain(prompt: str | tuple[Message, ...]) -> Any:
    return prompt if isinstance(prompt, str) else [message.model_dump(mode="json") for message in prompt]
