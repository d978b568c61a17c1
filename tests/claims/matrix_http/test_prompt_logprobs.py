"""`prompt_logprobs`: steering the prompt shows in the log-probabilities of its tokens, and only its own."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from testbed.compare import TOLERANCE, VISIBLE
from testbed.replies import CHAT, COMPLETIONS, MODEL_NAME
from tests.claims.matrix_http.conftest import Features
from tests.claims.matrix_http.feature_requests import BOTH, MESSAGES, PROMPT, SPEC, STRUCTURED_TOP, chat_body

pytestmark = pytest.mark.slow

SPECS: dict[str, Any] = {"plain": None, "generation": SPEC, "both": BOTH}
WINDOW = 8
Scores = list[dict[str, float]]
"""Per token of the prompt, token id -> log-probability; empty for the first."""


def body(spec: Any, **changes: Any) -> dict[str, Any]:
    return {
        "model": MODEL_NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": 2, "ignore_eos": True,
        "prompt_logprobs": STRUCTURED_TOP, "ksteer": spec, **changes,
    }  # fmt: skip


def scores_of(steps: list[Any]) -> Scores:
    return [{token: entry["logprob"] for token, entry in (step or {}).items()} for step in steps]


def scores(web: httpx.Client, spec: Any, **changes: Any) -> Scores:
    response = web.post(COMPLETIONS, json=body(spec, **changes))
    assert response.status_code == 200, response.text
    return scores_of(response.json()["choices"][0]["prompt_logprobs"])


def differences(left: Scores, right: Scores) -> list[float]:
    """Per token of the prompt, the largest difference of a log-probability both name: its own at least."""
    assert len(left) == len(right)
    return [
        max((abs(a[token] - b[token]) for token in a if token in b), default=0.0)
        for a, b in zip(left, right, strict=True)
    ]


@pytest.mark.parametrize("name", SPECS)
def test_they_equal_the_offline_engine(web: httpx.Client, offline_answers: dict[str, Any], name: str) -> None:
    """Within TOLERANCE, for the reason given there."""
    found = scores(web, SPECS[name])
    assert len(found) == len(PROMPT)
    assert not found[0]
    assert all(len(step) >= STRUCTURED_TOP for step in found[1:])
    assert max(differences(found, offline_answers[f"prompt {name}"])) < TOLERANCE


def test_they_change_where_the_prompt_is_steered_and_after(web: httpx.Client) -> None:
    """A token's log-probability comes from the position before it; later ones attend to what was steered."""
    plain = scores(web, None)
    changes = differences(scores(web, {**SPEC, "where": {"prompt": [WINDOW, WINDOW + 4]}}), plain)
    assert max(changes[: WINDOW + 1]) < TOLERANCE
    assert max(changes[WINDOW + 1 : WINDOW + 5]) > VISIBLE
    assert max(changes[WINDOW + 5 :]) > TOLERANCE
    assert max(differences(scores(web, {**SPEC, "where": "generation"}), plain)) < TOLERANCE


def test_plain_neighbours_are_untouched(features: Features, web: httpx.Client) -> None:
    """Plain and steered requests in one batch, several times the same prompt."""
    specs = [None, BOTH, None, SPEC, None, BOTH]
    alone = {str(spec): scores(web, spec) for spec in specs}

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=features.server.url, timeout=60) as client:
            return await asyncio.gather(*(client.post(COMPLETIONS, json=body(spec)) for spec in specs))

    for spec, response in zip(specs, asyncio.run(together()), strict=True):
        found = scores_of(response.json()["choices"][0]["prompt_logprobs"])
        assert max(differences(found, alone[str(spec)])) < TOLERANCE


def test_chat_has_them_too(web: httpx.Client) -> None:
    answers = {}
    for name, spec in SPECS.items():
        request = chat_body(prompt_logprobs=STRUCTURED_TOP, max_tokens=2, messages=MESSAGES, ksteer=spec)
        response = web.post(CHAT, json=request)
        assert response.status_code == 200, response.text
        answers[name] = scores_of(response.json()["prompt_logprobs"])
    assert max(differences(answers["generation"], answers["plain"])) < TOLERANCE
    assert max(differences(answers["both"], answers["plain"])) > VISIBLE


def test_echo_scores_the_steered_prompt(web: httpx.Client) -> None:
    """`echo` with `logprobs` returns the prompt's log-probabilities before the generated ones."""
    request = body(BOTH, prompt_logprobs=None, echo=True, logprobs=STRUCTURED_TOP)
    response = web.post(COMPLETIONS, json=request)
    assert response.status_code == 200, response.text
    echoed = response.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert len(echoed) == len(PROMPT) + 2
    steered, plain = scores(web, BOTH), scores(web, None)
    own = [
        (found, s[str(token)], p[str(token)])
        for found, s, p, token in list(zip(echoed, steered, plain, PROMPT, strict=False))[1:]
    ]
    assert all(abs(e - s) < TOLERANCE for e, s, _ in own)
    assert max(abs(e - p) for e, _, p in own) > VISIBLE
