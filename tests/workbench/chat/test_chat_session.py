"""A chat with a speaker that repeats what it was asked."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import UsageError
from ksteer_vllm.bench.chat.session import ChatSession
from ksteer_vllm.bench.chat.speaker import ChatPlan
from ksteer_vllm.data.rows import Message


class Echo:
    """Says the last message and how it was steered, word by word; keeps what it was asked."""

    def __init__(self) -> None:
        self.probe, self.labels, self.about = "tones", ("warm", "dry"), {"model": "echo"}
        self.asked: list[tuple[tuple[Message, ...], Any, int | None]] = []
        self.closed = 0
        self.interrupt_after = 0

    def reply(
        self, messages: tuple[Message, ...], spec: Mapping[str, Any] | None, seed: int | None
    ) -> Generator[str]:
        self.asked.append((messages, spec, seed))
        if "refuse" in messages[-1].content:
            raise UsageError("refused:\nnot today")
        try:
            for number, word in enumerate((messages[-1].content, " at ", str(len(self.asked))), 1):
                if number == self.interrupt_after:
                    os.kill(os.getpid(), signal.SIGINT)
                yield word
        finally:
            self.closed += 1

    def close(self) -> None: ...

    @property
    def shown(self) -> list[tuple[str, str]]:
        """The messages of the last request."""
        return [(message.role, message.content) for message in self.asked[-1][0]]


class Screen:
    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text += text


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def chat(echo: Echo, screen: Screen) -> ChatSession:
    return ChatSession(echo, ChatPlan(seed=7), {"method": "gradient"}, screen)


def specs(echo: Echo) -> list[Any]:
    return [spec for _, spec, _ in echo.asked]


def test_the_reply_says_how_it_was_steered(chat: ChatSession, echo: Echo, screen: Screen) -> None:
    chat.run(["/warm 0.5", "Hello?", "/quit", "never read"])
    assert specs(echo) == [{"probe": "tones", "method": "gradient", "target": {"warm": 1.0}, "strength": 0.5}]
    assert screen.text == "sliders: warm 0.5\n[warm 0.5]\nHello? at 1\n"


def test_the_conversation_goes_on_from_the_kept_replies(chat: ChatSession, echo: Echo) -> None:
    chat.run(["One", "/warm 1", "/again", "/plain", "Two"])
    assert echo.shown == [("user", "One"), ("assistant", "One at 2"), ("user", "Two")]
    assert [spec and spec["strength"] for spec in specs(echo)] == [None, 1.0, None, 1.0]


def test_replies_to_one_question_share_a_seed(chat: ChatSession, echo: Echo) -> None:
    chat.run(["One", "/again", "/plain", "Two"])
    assert [seed for _, _, seed in echo.asked] == [8, 8, 8, 9]


def test_a_system_prompt_comes_first_and_can_go(chat: ChatSession, echo: Echo) -> None:
    chat.run(["/system Be brief.", "One"])
    assert echo.shown == [("system", "Be brief."), ("user", "One")]
    chat.run(["/system", "/again"])
    assert echo.shown == [("user", "One")]


def test_reset_forgets_what_was_said_but_not_the_sliders(chat: ChatSession, echo: Echo) -> None:
    chat.run(["/dry -1", "One", "/reset", "Two"])
    assert echo.shown == [("user", "Two")]
    assert specs(echo)[-1]["avoid"] == {"dry": 1.0}


def test_off_is_unsteered(chat: ChatSession, echo: Echo, screen: Screen) -> None:
    chat.run(["/warm 1", "/off", "One"])
    assert specs(echo) == [None]
    assert screen.text.endswith("sliders: all at 0\n[unsteered]\nOne at 1\n")


def test_strength_turns_all(chat: ChatSession, screen: Screen) -> None:
    chat.run(["/warm 1", "/dry 0.5", "/strength 2", "/strength", "/strength big"])
    assert chat.sliders.turned() == {"warm": 2.0, "dry": 1.0}
    assert screen.text.endswith("/strength: expected a number, got 'big'\n")


def test_a_refusal_is_one_line_and_the_question_is_forgotten(
    chat: ChatSession, echo: Echo, screen: Screen
) -> None:
    chat.run(["refuse this", "One"])
    assert screen.text == "refused: not today\n[unsteered]\nOne at 2\n"
    assert echo.shown == [("user", "One")]


def test_a_failed_attempt_leaves_the_reply_there_was(chat: ChatSession, echo: Echo) -> None:
    chat.run(["One"])
    chat.conversation.exchanges[-1].question = "refuse One"
    chat.run(["/again", "Two"])
    assert echo.shown == [("user", "refuse One"), ("assistant", "One at 1"), ("user", "Two")]


def test_nothing_was_asked(chat: ChatSession, screen: Screen) -> None:
    chat.run(["/again", "/plain", "/nothing"])
    assert screen.text.count("nothing was asked yet\n") == 2
    assert screen.text.count("\n") == 3


def test_ctrl_c_stops_the_reply_and_nothing_else(chat: ChatSession, echo: Echo, screen: Screen) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell started the tests in the background
    echo.interrupt_after = 2
    chat.run(["One"])
    assert screen.text == "[unsteered]\nOne at  [stopped]\n"
    assert echo.closed == 1
    (exchange,) = chat.conversation.exchanges
    assert exchange.replies[0].stopped
    assert signal.getsignal(signal.SIGINT) is before


def test_everything_is_saved(chat: ChatSession, tmp_path: Path, screen: Screen) -> None:
    file = tmp_path / "chat.json"
    chat.run(["One", "/reset", "/warm 0.5", "Two", "/plain", f"/save {file}", f"/save {tmp_path}"])
    saved = json.loads(file.read_text())
    assert saved["about"] == {
        "model": "echo", "temperature": 0.7, "max_tokens": 200, "seed": 7, "edit": {"method": "gradient"},
    }  # fmt: skip
    assert [exchange["question"] for exchange in saved["earlier"]] == ["One"]
    (exchange,) = saved["exchanges"]
    assert [reply["spec"] and reply["spec"]["strength"] for reply in exchange["replies"]] == [0.5, None]
    assert exchange["kept"] == 0
    assert f"written: {file}\n" in screen.text
    assert screen.text.endswith(f"save: {tmp_path}: Is a directory\n")


def test_an_edit_cannot_say_what_the_sliders_say(echo: Echo, screen: Screen) -> None:
    with pytest.raises(UsageError, match="edit: avoid, strength: set by the chat itself"):
        ChatSession(echo, ChatPlan(), {"strength": 1, "avoid": ["warm"]}, screen)
