"""Steered requests over HTTP: equal to the offline engine in every spelling, streamed, batched and mixed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from testbed.compare import assert_differ, assert_same
from testbed.replies import (
    CHAT,
    COMPLETIONS,
    MAX_TOKENS,
    MESSAGES,
    PROMPT,
    ROUTES,
    TOP,
    Reply,
    choice_of,
    reply_of,
    request_body,
    spellings,
)
from testbed.serving import MODEL_NAME, Server
from tests.server.http.specs import STEERED, spec

pytestmark = pytest.mark.slow

Offline = dict[str, dict[str, Reply]]
EXTRA = {"return_tokens_as_token_ids": True, "ignore_eos": True}


def post(http: httpx.Client, route: str, **changes: Any) -> Reply:
    response = http.post(route, json=request_body(route, **changes))
    assert response.status_code == 200, response.text
    return reply_of(route, response.json()["choices"])


def openai_arguments(route: str, extra: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of the openai client's `create`, its own fields apart from vLLM's."""
    body = request_body(route, **changes)
    unknown = {name: body.pop(name) for name in EXTRA}
    return {**body, "extra_body": {**unknown, **(extra or {})}}


def create(client: OpenAI | AsyncOpenAI, route: str) -> Any:
    return (client.completions if route == COMPLETIONS else client.chat.completions).create


def streamed(route: str, chunks: list[dict[str, Any]], index: int = 0) -> Reply:
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return Reply([choice_of(route, choices)])


@pytest.mark.parametrize("route", ROUTES)
def test_a_plain_request_equals_the_offline_engine(http: httpx.Client, offline: Offline, route: str) -> None:
    reply = post(http, route)
    assert len(reply.outputs[0].token_ids) == MAX_TOKENS
    assert_same(reply, offline[route]["plain"])


@pytest.mark.parametrize("name", STEERED)
@pytest.mark.parametrize("route", ROUTES)
def test_both_spellings_equal_the_offline_engine(
    http: httpx.Client, offline: Offline, route: str, name: str
) -> None:
    assert_differ(offline[route][name], offline[route]["plain"], name)
    for fields in spellings(STEERED[name]).values():
        assert_same(post(http, route, **fields), offline[route][name], name)


@pytest.mark.parametrize("route", ROUTES)
def test_the_openai_client_steers(openai: OpenAI, offline: Offline, route: str) -> None:
    for name in ("generation", "both", "default alpha"):
        for fields in spellings(STEERED[name]).values():
            answer = create(openai, route)(**openai_arguments(route, fields))
            assert_same(reply_of(route, answer.model_dump()["choices"]), offline[route][name], name)
    plain = create(openai, route)(**openai_arguments(route))
    assert_same(reply_of(route, plain.model_dump()["choices"]), offline[route]["plain"])


@pytest.mark.parametrize("route", ROUTES)
def test_streamed_equals_not_streamed(openai: OpenAI, offline: Offline, route: str) -> None:
    for name in ("plain", "generation", "windows", "reflect"):
        for fields in spellings(STEERED[name]).values() if name in STEERED else [{}]:
            whole = create(openai, route)(**openai_arguments(route, fields)).model_dump()
            stream = create(openai, route)(**openai_arguments(route, fields, stream=True))
            chunks = [chunk.model_dump() for chunk in stream]
            assert_same(streamed(route, chunks), reply_of(route, whole["choices"]), name)
            assert_same(streamed(route, chunks), offline[route][name], name)
            assert text_of(route, chunks, "delta") == text_of(route, [whole], "message")


@pytest.mark.parametrize("report", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_tokens_are_streamed_while_others_are_made(openai: OpenAI, route: str, report: bool) -> None:
    """A busy front end sends several tokens in one chunk, but never this many."""
    steered = {"ksteer": {**STEERED["generation"], "report": report}}
    stream = create(openai, route)(**openai_arguments(route, steered, stream=True, max_tokens=200))
    written = [text_of(route, [chunk.model_dump()], "delta") for chunk in stream]
    assert sum(map(bool, written)) > MAX_TOKENS / 2


def text_of(route: str, answers: list[dict[str, Any]], part: str) -> str:
    choices = [choice for answer in answers for choice in answer["choices"]]
    return "".join((c["text"] if route == COMPLETIONS else c[part]["content"]) or "" for c in choices)


@pytest.mark.parametrize("route", ROUTES)
def test_explicit_null_is_a_plain_request(http: httpx.Client, offline: Offline, route: str) -> None:
    assert_same(post(http, route, ksteer=None), offline[route]["plain"])
    assert_same(post(http, route, ksteer=None, vllm_xargs=None), offline[route]["plain"])


@pytest.mark.parametrize("route", ROUTES)
def test_other_xargs_stay(http: httpx.Client, offline: Offline, route: str) -> None:
    xargs = {"mine": [1, 2], "session_id": "s"}
    assert_same(post(http, route, vllm_xargs=xargs, ksteer=spec()), offline[route]["generation"])
    both = {**xargs, "ksteer": json.dumps(spec())}
    assert_same(post(http, route, vllm_xargs=both), offline[route]["generation"])


@pytest.mark.parametrize("route", ROUTES)
def test_n_choices_are_all_steered(http: httpx.Client, offline: Offline, route: str) -> None:
    # the likeliest token alone survives top_k, so sampling is greedy, which vLLM refuses for n > 1
    reply = post(http, route, n=2, temperature=1.0, top_k=1, ksteer=spec())
    assert len(reply.outputs) == 2
    expected = offline[route]["generation"].outputs[0]
    for choice in reply.outputs:
        assert choice.token_ids == expected.token_ids
    assert_differ(reply, offline[route]["plain"])


def test_a_list_of_prompts_is_steered_prompt_by_prompt(http: httpx.Client) -> None:
    prompts = [[1, 5, 9], [1, 30, 44, 70, 7, 8, 11], [1, 99]]
    where = {"prompt": [1, None], "generation": [0, 3]}
    together = post(http, COMPLETIONS, prompt=prompts, ksteer=spec(where=where))
    assert len(together.outputs) == len(prompts)
    for prompt, choice in zip(prompts, together.outputs, strict=True):
        alone = post(http, COMPLETIONS, prompt=prompt, ksteer=spec(where=where))
        assert_same(Reply([choice]), alone)
        assert_differ(alone, post(http, COMPLETIONS, prompt=prompt))


def test_text_and_token_prompts_are_the_same_request(http: httpx.Client, offline: Offline) -> None:
    text = "<s> " + " ".join(f"w{token}" for token in PROMPT[1:])
    assert_same(
        post(http, COMPLETIONS, prompt=text, ksteer=spec(where="prompt")), offline[COMPLETIONS]["prompt"]
    )


@pytest.mark.parametrize("route", ROUTES)
def test_utf16_bodies_are_steered(http: httpx.Client, offline: Offline, route: str) -> None:
    body = json.dumps(request_body(route, ksteer=spec())).encode("utf-16")
    response = http.post(route, content=body, headers={"content-type": "application/json"})
    assert_same(reply_of(route, response.json()["choices"]), offline[route]["generation"])


def test_prompt_embeddings_are_steered(http: httpx.Client) -> None:
    body = {"prompt": None, "prompt_embeds": encoded_embeddings(5)}
    plain = post(http, COMPLETIONS, **body)
    assert_differ(post(http, COMPLETIONS, **body, ksteer=spec()), plain)
    assert_differ(post(http, COMPLETIONS, **body, ksteer=spec(where={"prompt": [4, 5]})), plain)
    assert_same(post(http, COMPLETIONS, **body), plain)


def encoded_embeddings(tokens: int) -> str:
    import base64
    import io

    import torch

    from testbed.models import HIDDEN_SIZE

    file = io.BytesIO()
    torch.save(torch.randn(tokens, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)), file)
    return base64.b64encode(file.getvalue()).decode()


def test_windows_beyond_the_embedded_prompt_are_refused_before_the_stream(http: httpx.Client) -> None:
    window = spec(where={"prompt": [5, 6]})
    body = request_body(
        COMPLETIONS, prompt=None, prompt_embeds=encoded_embeddings(5), stream=True, ksteer=window
    )
    response = http.post(COMPLETIONS, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "ksteer.where.prompt"


def test_many_specs_at_once_equal_each_alone(server: Server, offline: Offline) -> None:
    """Two rounds of every spec and a plain request on both routes, half of them streamed, all in flight."""
    names = ["plain", *STEERED] * 2

    async def one(client: AsyncOpenAI, number: int, route: str, name: str) -> Reply:
        spec_fields = list(spellings(STEERED[name]).values())[number % 2] if name in STEERED else {}
        stream = number % 4 < 2
        answer = await create(client, route)(**openai_arguments(route, spec_fields, stream=stream))
        if not stream:
            return reply_of(route, answer.model_dump()["choices"])
        return streamed(route, [chunk.model_dump() async for chunk in answer])

    async def all_at_once() -> list[tuple[str, str, Reply]]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            wanted = [(route, name) for name in names for route in ROUTES]
            replies = await asyncio.gather(*(one(client, i, *w) for i, w in enumerate(wanted)))
            return [(route, name, reply) for (route, name), reply in zip(wanted, replies, strict=True)]

    answered = asyncio.run(all_at_once())
    assert len(answered) == len(names) * len(ROUTES)
    ties = sum(assert_same(reply, offline[route][name], f"{route} {name}") for route, name, reply in answered)
    print(f"{len(answered)} requests at once, {ties} with a differing token at a near-tie")


def test_a_request_steered_off_the_scale_harms_nobody(server: Server, offline: Offline) -> None:
    """Steps of 1e12 overflow the request's own activations; its neighbours, and those after it in the same
    cache blocks, do not notice."""

    async def storm() -> list[Reply]:
        wild = spec(alpha=1e12, num_steps=64, layers=[1, 2], where="both")
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            wild_bodies = [
                request_body(COMPLETIONS, prompt=[7 + i] * 30, max_tokens=150, ksteer=wild, **extra)
                for i in range(12)
                for extra in ({}, {"temperature": 1.0, "top_p": 0.9, "seed": i})
            ]
            plain_bodies = [request_body(COMPLETIONS) for _ in range(8)]
            responses = await asyncio.gather(
                *(client.post(COMPLETIONS, json=body) for body in [*wild_bodies, *plain_bodies])
            )
            assert {r.status_code for r in responses} == {200}
            return [reply_of(COMPLETIONS, r.json()["choices"]) for r in responses[len(wild_bodies) :]]

    for reply in asyncio.run(storm()):
        assert_same(reply, offline[COMPLETIONS]["plain"], "beside")
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for route in ROUTES:
            assert_same(post(http, route), offline[route]["plain"], "after")
            assert_same(post(http, route, ksteer=spec()), offline[route]["generation"], "after")


def test_a_client_that_leaves_early_leaves_nothing_behind(http: httpx.Client, offline: Offline) -> None:
    body = request_body(CHAT, stream=True, max_tokens=200, ksteer=spec(where="both"))
    with http.stream("POST", CHAT, json=body) as response:
        next(response.iter_lines())
    assert_same(post(http, CHAT), offline[CHAT]["plain"])


def test_readme_sized_chat_request(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL_NAME,
        messages=MESSAGES,  # type: ignore[arg-type]
        max_tokens=4,
        logprobs=True,
        top_logprobs=TOP,
        extra_body={"ksteer": {"probe": "tones", "target": ["warm"], "alpha": 3}},
    )
    assert answer.choices[0].message.content
