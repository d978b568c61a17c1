"""A running server as the subject, through its public HTTP routes alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from ksteer_vllm.errors import UsageError
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.verify.subject import Answer, Card, CheckRequest, Facts, RefusedError, UnreachableError

__all__ = ["HTTPSubject"]

LOGPROBS = 5
TIMEOUT = 120.0
BUSY = (429, 503)
"""Statuses after which a request is sent again, within TIMEOUT, if they come with a Retry-After."""

THREADS = 16
ENOUGH_TOKENS = 24
"""The fewest distinct token ids that random prompts are made of."""

SEVERAL = (
    "which engine answered: with replicas or data parallelism behind one address, requests meant to share a "
    "batch or a cache may not have"
)

HEAD_START = 0.05
"""Seconds by which the first half of a batch is sent before the rest, so that it is running."""

TEXT = (
    "The quick brown fox jumps over the lazy dog while seven wizards quietly mix a box of old liquor jugs. "
    "In the morning she opened the window, looked at the grey harbour and wondered whether any of the small "
    "ships would reach the island before night. Numbers such as 1, 24, 365 and 1999 stand beside words "
    "like river, copper, music, winter, doctor, engine, garden and history; nobody asked why."
)
FALLBACK = range(5, 101)


class HTTPSubject:
    """A server started with `--plugin ksteer`.

    Args:
        url: The server's address, with or without /v1.
        api_key: The API key, if the server requires one.
        probes: Name -> folder, copies of the probes the server has loaded, for the oracle; their digests are
            checked.
    """

    def __init__(
        self, url: str, api_key: str | None = None, probes: Mapping[str, Path] | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        base = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT)
        self._pool = ThreadPoolExecutor(THREADS)
        self._probes = dict(probes or {})
        self._model = ""

    def facts(self) -> Facts:
        """What the server says about itself.

        Raises:
            UnreachableError: If there is no such server, or it does not steer.
            UsageError: If a copy of a probe is not what the server has loaded.
        """
        about = self._get("/v1/ksteer")
        cards = [self._card(card) for card in self._get("/v1/ksteer/probes")["data"]]
        if missing := sorted(set(self._probes) - {card.name for card in cards}):
            raise UsageError(f"probe: not loaded on the server: {', '.join(missing)}")
        self._model = about["model"]["name"]
        root = str(about["model"].get("root") or "")
        return Facts(
            name=f"{self._model} at {self._client.base_url}",
            weights=root if Path(root).is_dir() else "",
            num_layers=int(about["model"]["num_layers"]),
            open_layers=tuple(about["layers"]),
            cards=tuple(cards),
            tokens=self._tokens(),
            max_model_len=self._longest(),
            reports=bool(about["reports"]),
            limits=about["limits"],
            needs_opt_out=about.get("default") is not None,
            versions=about.get("versions", {}),
            gaps=(SEVERAL,),
        )

    def alone(self, request: CheckRequest) -> Answer:
        return self._complete(request)

    def together(self, requests: Sequence[CheckRequest]) -> list[Answer]:
        """Send them at once, the second half a moment later, so that the first half is already running."""
        half = len(requests) // 2
        running = [self._pool.submit(self._complete, request) for request in requests[:half]]
        if running:
            time.sleep(HEAD_START)
        running += [self._pool.submit(self._complete, request) for request in requests[half:]]
        return [future.result() for future in running]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _card(self, card: Mapping[str, Any]) -> Card:
        probe = None
        if folder := self._probes.get(card["name"]):
            probe = Probe.load(folder)
            if probe.metadata.digest != card["digest"]:
                raise UsageError(f"probe {card['name']!r}: {folder} is not what the server has loaded")
        layers = tuple(card["layers"])
        return Card(
            name=card["name"],
            digest=card["digest"],
            family=card["family"],
            labels=tuple(card["labels"]),
            layers=layers,
            own_layer=next(iter(card.get("default_layers") or layers), 0),
            methods=tuple(card["methods"]),
            default_alpha=card.get("default_alpha") or {},
            default_edit=card.get("default_edit") or {},
            metrics=card.get("metrics") or {},
            probe=probe,
        )

    def _tokens(self) -> tuple[int, ...]:
        """Token ids of ordinary text, or small ids if the server does not tell."""
        body = {"model": self._model, "prompt": TEXT, "max_tokens": 1, "return_token_ids": True}
        try:
            choice = self._post("/v1/completions", body)["choices"][0]
            ids = tuple(sorted(set(choice.get("prompt_token_ids") or ())))
        except RefusedError:  # longer than the model reads, or no such field
            ids = ()
        return ids if len(ids) >= ENOUGH_TOKENS else tuple(FALLBACK)

    def _longest(self) -> int:
        models = self._get("/v1/models")["data"]
        of_ours = [m.get("max_model_len") for m in models if m["id"] == self._model]
        return int(next((length for length in of_ours if length), 4096))

    def _complete(self, request: CheckRequest) -> Answer:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": LOGPROBS,
            "return_tokens_as_token_ids": True,
        }
        if request.spec is not None:
            body["ksteer"] = request.spec
        if request.salt is not None:
            body["cache_salt"] = request.salt
        reply, began = self._send("POST", "/v1/completions", body)
        return _answer(reply, began, time.monotonic())

    def _get(self, path: str) -> Any:
        return self._send("GET", path, None)[0]

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._send("POST", path, body)[0]

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[Any, float]:
        """(the answer, when the request it answers was sent)."""
        last = time.monotonic() + TIMEOUT
        while True:
            began = time.monotonic()
            try:
                response = self._client.request(method, path, json=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise UnreachableError(f"{self._client.base_url}: {error or type(error).__name__}") from None
            status = response.status_code
            if status not in BUSY or "retry-after" not in response.headers:
                break
            wait = _seconds(response.headers["retry-after"])
            if time.monotonic() + wait > last:
                raise UnreachableError(f"{path}: the server is busy: {status}: {_message(response)}")
            time.sleep(wait)
        if status in (401, 403):
            raise UnreachableError(f"{path}: the server requires an API key (--api-key)")
        if status == 404 and method == "GET":
            raise UnreachableError(f"{path}: not found; is this vLLM with --plugin ksteer?")
        if status >= 400:
            raise RefusedError(f"{status}: {_message(response)}")
        try:
            return response.json(), began
        except ValueError:
            raise UnreachableError(
                f"{path}: the answer is not JSON; is this vLLM with --plugin ksteer?"
            ) from None


def _seconds(retry_after: str) -> float:
    """The seconds to wait; 1 for a date."""
    return max(float(retry_after), 0.1) if retry_after.isdecimal() else 1.0


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def _answer(reply: Mapping[str, Any], began: float, ended: float) -> Answer:
    choice = reply["choices"][0]
    found = choice["logprobs"]
    tokens = tuple(_id(token) for token in found["tokens"])
    steps = tuple(
        {**{_id(name): value for name, value in top.items()}, token: own}
        for token, own, top in zip(tokens, found["token_logprobs"], found["top_logprobs"], strict=True)
    )
    details = (reply.get("usage") or {}).get("prompt_tokens_details") or {}
    reports = (reply.get("ksteer") or {}).get("choices") or [None]
    return Answer(tokens, steps, reports[0], details.get("cached_tokens"), began, ended)


def _id(text: str) -> int:
    return int(text.removeprefix("token_id:"))
