"""What a server and the offline engine answered, in the one shape that `testbed.compare` compares."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.serving import MODEL_NAME

MAX_TOKENS = 12
TOP = 3
SAMPLING: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
ROUTES = (COMPLETIONS, CHAT)

PROMPT = [1, 5, 9, 30, 44, 70]
MESSAGES = [{"role": "user", "content": "w5 w9 w30 w44"}]
"""Six tokens through the tiny model's template, as PROMPT is."""


@dataclass(frozen=True)
class Candidate:
    logprob: float


@dataclass(frozen=True)
class Choice:
    token_ids: tuple[int, ...]
    logprobs: list[dict[int, Candidate]]


@dataclass(frozen=True)
class Reply:
    """Like vLLM's RequestOutput, as far as comparison goes."""

    outputs: list[Choice]


def request_body(route: str, **changes: Any) -> dict[str, Any]:
    """A greedy request with log-probabilities and token ids for either route."""
    body = {"model": MODEL_NAME, **SAMPLING, "return_tokens_as_token_ids": True}
    if route == COMPLETIONS:
        body |= {"prompt": PROMPT, "logprobs": TOP}
    else:
        body |= {"messages": MESSAGES, "logprobs": True, "top_logprobs": TOP}
    return {**body, **changes}


def spellings(spec: Any) -> dict[str, dict[str, Any]]:
    """Both ways to put a spec into a body."""
    return {"body": {"ksteer": spec}, "xargs": {"vllm_xargs": {"ksteer": json.dumps(spec)}}}


def reply_of(route: str, choices: Iterable[Mapping[str, Any]]) -> Reply:
    """The reply in a response's `choices`."""
    return Reply([choice_of(route, [choice]) for choice in choices])


def choice_of(route: str, chunks: Iterable[Mapping[str, Any]]) -> Choice:
    """One choice from its chunks: the stream's, or the whole choice as the only one."""
    steps: list[tuple[str, float, dict[str, float]]] = []
    for chunk in chunks:
        logprobs = chunk.get("logprobs")
        if not logprobs:
            continue
        if route == COMPLETIONS:
            columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
            steps.extend(zip(*columns, strict=True))
        else:
            for item in logprobs["content"]:
                top = {entry["token"]: entry["logprob"] for entry in item["top_logprobs"]}
                steps.append((item["token"], item["logprob"], top))
    return Choice(
        tuple(_token_id(token) for token, _, _ in steps),
        [
            {_token_id(name): Candidate(logprob) for name, logprob in {**top, token: own}.items()}
            for token, own, top in steps
        ],
    )


def _token_id(text: str) -> int:
    return int(text.removeprefix("token_id:"))


def plain_json(output: Any) -> list[Any]:
    """An offline RequestOutput in plain JSON types; `from_plain_json` reads it back."""
    return [
        [list(c.token_ids), [{str(t): e.logprob for t, e in step.items()} for step in c.logprobs]]
        for c in output.outputs
    ]


def from_plain_json(choices: list[Any]) -> Reply:
    return Reply(
        [
            Choice(tuple(tokens), [{int(t): Candidate(p) for t, p in step.items()} for step in steps])
            for tokens, steps in choices
        ]
    )
