"""A process of a running server is killed: clients get errors and never an unsteered answer, and the server
ends as vLLM's own does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.load.stage import Stage, prepare, steering_flags
from testbed.compare import TOLERANCE
from testbed.replies import COMPLETIONS, Reply, choice_of, request_body
from testbed.serving import Server, serve

pytestmark = pytest.mark.slow

LIMIT = 90.0
"""Seconds in which a server whose engine is dead must have ended or be unhealthy. Plain vLLM takes a few."""
SPEC = {"probe": "mlp", "target": ["warm"], "alpha": 4.0, "where": "both"}
LENGTH = 200


@dataclass(frozen=True)
class Victims:
    """Servers to be killed: a plain one, one with steering, and one with steering on two workers."""

    plain: Server
    steering: Server
    two_workers: Server


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory, serving: None) -> Iterator[Victims]:
    stage: Stage = prepare(tmp_path_factory.mktemp("killed"))
    steering = steering_flags(stage)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serve(stage.model, stage.root / f"{index}.log", *flags))
            for index, flags in enumerate(
                ([], steering, [*steering, "--tensor-parallel-size", "2", "--max-num-seqs", "8"])
            )
        ]
        for server in servers:
            server.wait_until_healthy()
        yield Victims(*servers)


@dataclass(frozen=True)
class Followed:
    """A stream as far as it went. whole: it ended as streams do."""

    events: list[dict[str, Any]]
    whole: bool
    trouble: str

    @property
    def reply(self) -> Reply:
        return Reply([choice_of(COMPLETIONS, [c for event in self.events for c in event.get("choices", ())])])


def follow(url: str, seed: int, begun: threading.Event | None = None, **fields: Any) -> Followed:
    """begun: set once the first tokens are there."""
    events: list[dict[str, Any]] = []
    body = request_body(COMPLETIONS, prompt=[1, 5, 9 + seed], max_tokens=LENGTH, stream=True, **fields)
    try:
        with httpx.stream("POST", url + COMPLETIONS, json=body, timeout=LIMIT) as response:
            if response.status_code != 200:
                return Followed([], False, f"status {response.status_code}")
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    broken = [event for event in events if "error" in event]
                    return Followed(events, not broken, str(broken))
                if line.startswith("data: "):
                    events.append(json.loads(line.removeprefix("data: ")))
                    if begun is not None:
                        begun.set()
    except httpx.HTTPError as error:
        return Followed(events, False, type(error).__name__)
    return Followed(events, False, "cut off")


def processes(server: Server, words: str) -> list[psutil.Process]:
    """The server's processes whose title has these words, as vLLM names its own."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in family if words in " ".join(child.cmdline()) or words in child.name()]


def killed_while_streaming(server: Server, words: str, **fields: Any) -> list[list[Followed]]:
    """Kill a process of the server while four clients stream, each one reply after the other until one breaks
    off. What became of the replies, client by client."""
    (victim, *_) = processes(server, words)
    begun = [threading.Event() for _ in range(4)]
    deadline = time.monotonic() + LIMIT

    def keep_on(seed: int) -> list[Followed]:
        replies: list[Followed] = []
        while (not replies or replies[-1].whole) and time.monotonic() < deadline:
            replies.append(follow(server.url, seed, begun[seed], **fields))
        return replies

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(keep_on, seed) for seed in range(4)]
        for client in begun:
            client.wait(LIMIT)
        victim.kill()
        return [client.result(timeout=2 * LIMIT) for client in clients]


def ended(server: Server) -> bool:
    """Whether the server ends or says that it is not healthy, in the time it is given."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if server.process.poll() is not None or not server.is_healthy():
            return True
        time.sleep(0.2)
    return False


def assert_no_answers(server: Server, **fields: Any) -> None:
    """From now on requests are refused or find nobody."""
    for _ in range(3):
        followed = follow(server.url, 0, **fields)
        assert not followed.whole
        assert not followed.events


def assert_steered(followed: Followed, steered: Reply, plain: Reply) -> None:
    """As far as it went it is the steered answer, which differs from the plain one from its first token."""
    expected, unsteered = steered.outputs[0], plain.outputs[0]
    for index, step in enumerate(followed.reply.outputs[0].logprobs):
        token = followed.reply.outputs[0].token_ids[index]
        if token != expected.token_ids[index]:
            best, second = sorted((c.logprob for c in step.values()), reverse=True)[:2]
            assert best - second < TOLERANCE
            return
        assert step[token].logprob == pytest.approx(expected.logprobs[index][token].logprob, abs=TOLERANCE)
    if followed.reply.outputs[0].token_ids:
        first = followed.reply.outputs[0].token_ids[0]
        close = [c.logprob for t, c in unsteered.logprobs[0].items() if t == first]
        assert not close or abs(close[0] - followed.reply.outputs[0].logprobs[0][first].logprob) > 1e-2


@pytest.mark.parametrize("kind", ["steering", "two_workers"])
def test_a_killed_process_of_the_engine(victims: Victims, kind: str) -> None:
    server: Server = getattr(victims, kind)
    steered = [follow(server.url, seed, ksteer=SPEC).reply for seed in range(4)]
    plain = [follow(server.url, seed).reply for seed in range(4)]
    words = "EngineCore" if kind == "steering" else "Worker_TP1"
    for seed, replies in enumerate(killed_while_streaming(server, words, ksteer=SPEC)):
        assert not replies[-1].whole  # each client was told, in its reply or by the next one
        for followed in replies:
            assert_steered(followed, steered[seed], plain[seed])
    assert ended(server)
    assert_no_answers(server, ksteer=SPEC)
    assert_no_answers(server)


def test_plain_vllm_ends_in_the_same_way(victims: Victims) -> None:
    """What the test above asks of a server with steering is what vLLM does by itself."""
    for replies in killed_while_streaming(victims.plain, "EngineCore"):
        assert not replies[-1].whole
    assert ended(victims.plain)
    assert_no_answers(victims.plain)
