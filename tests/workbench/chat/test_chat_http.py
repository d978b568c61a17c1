"""The speaker of a server, against canned answers; tests/server/page has a real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from ksteer_vllm import UsageError
from ksteer_vllm.bench.chat.over_http import ServerSpeaker
from ksteer_vllm.bench.chat.speaker import ChatPlan
from ksteer_vllm.data.rows import Message

QUESTION = (Message(role="user", content="How?"),)
CARD = {"name": "tones", "labels": ["warm", "dry"], "digest": "abc"}
STREAM = """\
data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}

data: {"choices": [{"delta": {"content": "Good"}}]}

: a comment
data: {"choices": [{"delta": {"content": " day"}}]}

data: {"choices": []}

data: [DONE]
"""


class Canned:
    """A server's answers by path; keeps the bodies of requests."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answers: dict[str, httpx.Response] = {
            "/v1/ksteer": httpx.Response(200, json={"model": {"name": "small"}}),
            "/v1/ksteer/probes": httpx.Response(200, json={"data": [CARD]}),
            "/v1/chat/completions": httpx.Response(200, text=STREAM),
        }

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.content:
            self.bodies.append(json.loads(request.content))
        return self.answers.get(request.url.path, httpx.Response(404))


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> Canned:
    server = Canned()
    monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(server)))
    return server


@pytest.fixture
def speaker_of(canned: Canned) -> Callable[..., ServerSpeaker]:
    return partial(ServerSpeaker, "http://here:8000/v1", plan=ChatPlan(max_tokens=9))


def test_a_reply_comes_in_pieces(canned: Canned, speaker_of: Callable[..., ServerSpeaker]) -> None:
    speaker = speaker_of(probe="tones")
    assert speaker.labels == ("warm", "dry")
    assert list(speaker.reply(QUESTION, {"probe": "tones", "target": ["warm"]}, 3)) == ["Good", " day"]
    assert canned.bodies == [
        {
            "model": "small",
            "messages": [{"role": "user", "content": "How?"}],
            "stream": True,
            "temperature": 0.7,
            "max_tokens": 9,
            "seed": 3,
            "ksteer": {"probe": "tones", "target": ["warm"]},
        }
    ]


def test_an_unsteered_reply_is_not_left_to_a_default_preset(
    canned: Canned, speaker_of: Callable[..., ServerSpeaker]
) -> None:
    list(speaker_of(probe="tones").reply(QUESTION, None, None))
    assert canned.bodies[0]["ksteer"] is False
    assert "seed" not in canned.bodies[0]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"enable_thinking": False}),
        ({"enable_thinking": True}, {"enable_thinking": True}),
        ({"date": "today"}, {"enable_thinking": False, "date": "today"}),
    ],
)
def test_chats_go_through_the_template_as_the_probe_was_made(
    canned: Canned, speaker_of: Callable[..., ServerSpeaker], given: dict[str, Any], sent: dict[str, Any]
) -> None:
    card = {**CARD, "chat_template_kwargs": {"enable_thinking": False}}
    canned.answers["/v1/ksteer/probes"] = httpx.Response(200, json={"data": [card]})
    list(speaker_of(probe="tones", template_arguments=given).reply(QUESTION, None, None))
    assert canned.bodies[0]["chat_template_kwargs"] == sent


def test_a_folder_stands_for_the_name_it_is_served_under(
    canned: Canned, speaker_of: Callable[..., ServerSpeaker]
) -> None:
    assert speaker_of(probe="probes/tones/").probe == "tones"
    with pytest.raises(UsageError, match=r"the server has no probe 'moods'; it has: tones"):
        speaker_of(probe="moods")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            httpx.Response(400, json={"error": {"message": "ksteer.target.grim: unknown\nlabel"}}),
            r"^400: ksteer\.target\.grim: unknown label$",
        ),
        (httpx.Response(200, text='data: {"error": {"message": "engine gone"}}\n\n'), "^engine gone$"),
        (httpx.Response(200, text="data: {oops\n\n"), r"not a chat completion: \{oops"),
        (httpx.Response(502, text="bad gateway"), "^502: bad gateway$"),
    ],
)
def test_a_reply_that_fails_is_one_line(
    canned: Canned, speaker_of: Callable[..., ServerSpeaker], answer: httpx.Response, says: str
) -> None:
    speaker = speaker_of(probe="tones")
    canned.answers["/v1/chat/completions"] = answer
    with pytest.raises(UsageError, match=says):
        list(speaker.reply(QUESTION, None, None))


@pytest.mark.parametrize(
    ("status", "says"),
    [(404, "is this vLLM with --plugin ksteer"), (401, "requires an API key"), (500, "500: ")],
)
def test_a_server_that_is_not_ours(
    canned: Canned, speaker_of: Callable[..., ServerSpeaker], status: int, says: str
) -> None:
    canned.answers["/v1/ksteer"] = httpx.Response(status)
    with pytest.raises(UsageError, match=says):
        speaker_of(probe="tones")
