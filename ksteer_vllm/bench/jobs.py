"""What an experiment asks of the engine, and what it gets back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ksteer_vllm.data.rows import Message

__all__ = ["Job", "Reply"]


@dataclass(frozen=True)
class Job:
    """One request.

    prompt: a text, or chat messages, which go through the model's chat template. spec: the request's
    steering spec as JSON, None for an unsteered one. seed: of the sampling; the same prompt should have the
    same seed in every condition. tags: what the asker groups by (variant, targets, alpha, layer, ...), plain
    JSON; part of the key.
    """

    prompt: str | tuple[Message, ...]
    spec: Mapping[str, Any] | None = None
    seed: int = 0
    tags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the job in a journal: a digest of everything in it."""
        prompt = (
            self.prompt if isinstance(self.prompt, str) else [m.model_dump(mode="json") for m in self.prompt]
        )
        what = [prompt, self.spec, self.seed, self.tags]
        return hashlib.sha256(json.dumps(what, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @property
    def question(self) -> str:
        """The prompt's text; of a chat, its last message."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content


@dataclass(frozen=True)
class Reply:
    """The reply to a job, and how the unsteered model and the evaluation probe read it.

    tokens: generated tokens, without the one that ends the reply. finished: it ended by itself. nll: mean
    negative log-likelihood per token, in nats, under the unsteered model, of the reply and, if it finished,
    of its end. propensity: label -> the evaluation probe's logit, mean over the reply's positions, of the
    text read by the unsteered model. Both are None where no score was asked for, or the reply is empty.
    shift: mean |x' - x| / |x| over steered tokens, if the spec asks for a report.
    """

    job: Job
    text: str
    tokens: int
    finished: bool
    nll: float | None = None
    propensity: Mapping[str, float] | None = None
    shift: float | None = None
