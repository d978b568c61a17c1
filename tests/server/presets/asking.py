"""Greedy requests to each route that answers with text, and the text of the answer."""

from __future__ import annotations

from typing import Any

import httpx

ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
TAKE_SPECS = ROUTES[:3]
TEXT = "w5 w9 w30 w44"


def body_of(route: str, **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 12}
    if route == "/v1/completions":
        body["prompt"] = TEXT
    elif route == "/v1/responses":
        body |= {"input": TEXT, "max_output_tokens": body.pop("max_tokens")}
    else:
        body["messages"] = [{"role": "user", "content": TEXT}]
    return {**body, **changes}


def ask(client: httpx.Client, route: str, **changes: Any) -> httpx.Response:
    return client.post(route, json=body_of(route, **changes))


def text_of(client: httpx.Client, route: str, **changes: Any) -> str:
    """The text of the answer, which must be one."""
    response = ask(client, route, **changes)
    assert response.status_code == 200, response.text
    answer = response.json()
    if route == "/v1/completions":
        return str(answer["choices"][0]["text"])
    if route == "/v1/chat/completions":
        return str(answer["choices"][0]["message"]["content"])
    parts = answer["content"] if route == "/v1/messages" else answer["output"][0]["content"]
    return str(parts[0]["text"])


def problem_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error in a response, which must be one in vLLM's shape."""
    assert response.status_code == status, (response.status_code, response.text[:500])
    error: dict[str, Any] = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["code"] == status
    return error
