"""No route loses a spec: each of the server's own description steers, or refuses by name.

`tests/server/http/test_http_routes.py` asks the routes that refuse in every spelling; here those that steer
have to prove it, and a preset in the name of the model counts as a spec too. Websockets:
`tests/unit/server/test_gate.py`.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from ksteer_vllm.server import sagemaker
from ksteer_vllm.server.gate import STEERED_ROUTES
from testbed.replies import CHAT, COMPLETIONS, MODEL_NAME
from tests.claims.matrix_http.feature_requests import (
    MESSAGES,
    PRESET,
    PROMPT,
    REPORTING,
    RESPONSES,
    SPEC,
    chat_body,
    responses_body,
)
from tests.server.http.test_http_routes import REFUSAL, routes_of

pytestmark = pytest.mark.slow

OWN = "/v1/ksteer"
ANTHROPIC = "/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {
        "model": MODEL_NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": 8, "ignore_eos": True,
    },
    CHAT: chat_body(max_tokens=8, ignore_eos=True),
    RESPONSES: responses_body(max_output_tokens=8),
    "/v1/chat/completions/batch": chat_body(messages=[MESSAGES, MESSAGES], max_tokens=8),
    "/v1/chat/completions/render": chat_body(),
    "/v1/responses/render": responses_body(),
}  # fmt: skip
EVERYTHING = {
    "model": MODEL_NAME, "messages": MESSAGES, "prompt": "hi", "input": "hi", "max_tokens": 8,
    "temperature": 0, "text": "hi", "query": "hi", "documents": ["hi"], "text_1": "hi", "text_2": "hi",
    "queries": "hi",
    "items": ["hi"], "label_token_ids": [5, 6], "data_1": "hi", "data_2": "hi", "choices": ["a", "b"],
    "token_ids": [5, 6], "tokens": [5, 6], "sampling_params": {"max_tokens": 2}, "output_token_ids": [5],
}  # fmt: skip
"""Fields of any route's body, so that each gets as far as its model's name."""
GENERATE_NOTHING = (
    "/tokenize",
    "/detokenize",
    "/ping",
    "/v1/messages/count_tokens",
    "/is_scaling_elastic_ep",
)
REFUSES_PRESETS = "names a preset, which this route would lose"


def test_every_route_steers_or_refuses_by_name(web: httpx.Client) -> None:
    routes = [path for method, path in routes_of(web) if method == "POST" and not path.startswith(OWN)]
    assert set(STEERED_ROUTES) <= set(routes) & set(BODIES)
    refused = []
    for path in routes:
        response = web.post(path, json={**BODIES.get(path, EVERYTHING), "ksteer": REPORTING})
        if path in STEERED_ROUTES:
            assert response.status_code == 200, (path, response.text)
            assert response.json()["ksteer"]["choices"][0]["tokens_steered"] == 8, path
        else:
            assert response.status_code == 400, (path, response.text)
            assert response.json()["error"]["message"].startswith(f"ksteer: {path} {REFUSAL}")
            refused.append(path)
    assert {ANTHROPIC, "/tokenize", "/v1/chat/completions/render", "/inference/v1/generate"} <= set(refused)
    print(f"steered: {', '.join(STEERED_ROUTES)}; refused: {', '.join(refused)}")


def test_no_route_loses_a_preset_in_the_models_name(web: httpx.Client) -> None:
    """`tiny:warm`: a route that answers has steered, unless it generates nothing; the others say no."""
    steered, refused = set(), {}
    for method, path in routes_of(web):
        if method != "POST" or path.startswith(OWN):
            continue
        body = BODIES.get(path, EVERYTHING)
        answer = web.post(path, json={**body, "model": f"{MODEL_NAME}:{PRESET}"})
        if answer.status_code != 200:
            refused[path] = f"{answer.status_code} {answer.text}"
        elif path not in GENERATE_NOTHING:
            plain = web.post(path, json={**body, "model": MODEL_NAME})
            assert plain.status_code == 200
            assert words(plain) != words(answer), f"{path} lost the preset: {answer.text[:300]}"
            steered.add(path)
    print(f"steered: {sorted(steered)}\nrefused: {json.dumps(refused, indent=1)}")
    assert {*STEERED_ROUTES, ANTHROPIC} <= steered
    named = {path for path, answer in refused.items() if REFUSES_PRESETS in answer}
    assert named >= {"/inference/v1/generate", "/generative_scoring", *BODIES.keys() & refused.keys()}
    assert "drops the model of the body" in refused.get(sagemaker.ROUTE, "drops the model of the body")


def test_sagemaker_takes_a_preset_by_header(web: httpx.Client) -> None:
    """`/invocations` reads the model from a header alone: in the body it would be lost, so it is refused."""
    if not any(path == sagemaker.ROUTE for _, path in routes_of(web)):
        pytest.skip("this vLLM has no /invocations here")
    name = f"{MODEL_NAME}:{PRESET}"
    steered = web.post(COMPLETIONS, json={**BODIES[COMPLETIONS], "model": name})
    for body in (BODIES[COMPLETIONS], {**BODIES[COMPLETIONS], "model": name}):
        answer = web.post(sagemaker.ROUTE, json=body, headers={sagemaker.HEADER: name})
        assert words(answer) == words(steered)
        for headers in ({}, {sagemaker.HEADER: MODEL_NAME}):
            answer = web.post(sagemaker.ROUTE, json=body, headers=headers)
            assert answer.status_code == (400 if body["model"] == name else 200)


def words(response: httpx.Response) -> str:
    """What a model said, without ids and times."""
    body = response.json()
    texts = []
    for item in [*body.get("choices", []), *body.get("output", []), *body.get("content", [])]:
        for holder in (item, item.get("message") or {}, *(item.get("content") or [])):
            if isinstance(holder, dict):
                texts += [str(holder.get(name)) for name in ("text", "reasoning", "thinking", "token_ids")]
                if isinstance(holder.get("content"), str):
                    texts.append(holder["content"])
    return " ".join(texts) or str(body)


def test_anthropic_messages_take_a_preset_by_model_name(web: httpx.Client) -> None:
    """`/v1/messages` has no place for a spec; `model="tiny:warm"` is steered, streamed too."""
    body = {"model": MODEL_NAME, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    plain, steered = (
        web.post(ANTHROPIC, json={**body, "model": name}) for name in (MODEL_NAME, f"{MODEL_NAME}:{PRESET}")
    )
    assert plain.status_code == steered.status_code == 200
    assert words(plain) != words(steered)
    chat = web.post(CHAT, json=chat_body(max_tokens=12, thinking_token_budget=None, ksteer=SPEC)).json()
    assert chat["choices"][0]["message"]["reasoning"] in words(steered)
    streamed = web.post(ANTHROPIC, json={**body, "model": f"{MODEL_NAME}:{PRESET}", "stream": True})
    deltas = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    thinking = "".join(event.get("delta", {}).get("thinking", "") for event in deltas)
    assert thinking == chat["choices"][0]["message"]["reasoning"]
