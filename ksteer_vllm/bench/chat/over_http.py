"""A running server, through its OpenAI API; needs neither torch nor vLLM."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any

import httpx

from ksteer_vllm.bench.chat.speaker import ChatPlan
from ksteer_vllm.data.rows import Message
from ksteer_vllm.errors import UsageError, choices
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["ServerSpeaker"]

TIMEOUT = 120.0
"""Seconds a server may be silent."""


class ServerSpeaker:
    """A `Speaker` on a server started with `--plugin ksteer`.

    Args:
        url: The server's address, with or without /v1.
        probe: The name of a probe it has loaded; a folder's path stands for its last part.
        plan: How to sample.
        api_key: The server's API key, if it requires one.
        template_arguments: Arguments of the chat template, before those that the probe was made with.

    Raises:
        UsageError: If nobody answers there, the server does not steer, or it has no such probe.
    """

    def __init__(
        self,
        url: str,
        probe: str,
        plan: ChatPlan,
        api_key: str = "",
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        base = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT)
        self._plan = plan
        self._model = str(self._get("/v1/ksteer")["model"]["name"])
        cards = {card["name"]: card for card in self._get("/v1/ksteer/probes")["data"]}
        self.probe = probe if probe in cards else probe.rstrip("/").rpartition("/")[2]
        if self.probe not in cards:
            there_are = choices(self.probe, cards)
            raise UsageError(f"probe: the server has no probe {probe[:80]!r}; it has: {there_are}")
        card = cards[self.probe]
        self.labels: tuple[str, ...] = tuple(card["labels"])
        recorded = card.get("chat_template_kwargs", {})  # older servers do not tell
        self._template_arguments = {**recorded, **(template_arguments or {})}
        self.about = {"model": self._model, "url": base, "probe": self.probe, "digest": card["digest"]}

    def reply(
        self, messages: tuple[Message, ...], spec: Mapping[str, Any] | None, seed: int | None
    ) -> Generator[str]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [message.model_dump() for message in messages],
            "stream": True,
            "temperature": self._plan.temperature,
            "max_tokens": self._plan.max_tokens,
            EXTRA_ARGS_KEY: dict(spec) if spec else False,  # False: nor by the server's default preset
        }
        if self._template_arguments:
            body["chat_template_kwargs"] = self._template_arguments
        if seed is not None:
            body["seed"] = seed
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise UsageError(_refusal(response))
                yield from filter(None, map(_piece, response.iter_lines()))
        except httpx.HTTPError as error:
            raise UsageError(f"{self._client.base_url}: {error or type(error).__name__}") from None

    def close(self) -> None:
        self._client.close()

    def _get(self, path: str) -> Any:
        try:
            response = self._client.get(path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UsageError(f"--url: {self._client.base_url}: {error or type(error).__name__}") from None
        if response.status_code in (401, 403):
            raise UsageError(f"--url: {path}: the server requires an API key (--api-key)")
        if response.status_code == 404:
            raise UsageError(f"--url: {path}: not found; is this vLLM with --plugin ksteer?")
        if response.is_error:
            raise UsageError(f"--url: {path}: {_refusal(response)}")
        try:
            return response.json()
        except ValueError:
            raise UsageError(f"--url: {path}: not JSON; is this vLLM with --plugin ksteer?") from None


def _piece(line: str) -> str:
    """The text one line of a stream adds. Raises UsageError for an error in it."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return ""
    try:
        told = json.loads(data)
        if "error" in told:
            raise UsageError(str(told["error"].get("message") or told["error"])[:500])
        return "".join(choice["delta"].get("content") or "" for choice in told.get("choices", ()))
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError):
        raise UsageError(f"the server sent what is not a chat completion: {data[:120]}") from None


def _refusal(response: httpx.Response) -> str:
    """The server's message in one line."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text
    return f"{response.status_code}: {' '.join(message.split())[:500]}"
