"""Chat side by side against a real server, greedy: only the side that is steered changes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testbed.serving import Server
from tests.server.page.screen import CHAT, QUESTION, Screen

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytestmark = pytest.mark.slow

LABELS = ["helpful", "expert", "casual", "cautious", "empathetic", "concise"]


def recorded(screen: Screen) -> list[tuple[dict[str, Any], str]]:
    """The bodies of requests and answers from here on, as they passed."""
    seen: list[tuple[dict[str, Any], str]] = []

    def pass_on(route: Route) -> None:
        response = route.fetch()
        seen.append((json.loads(route.request.post_data or ""), response.text()))
        route.fulfill(response=response)

    screen.page.route(CHAT, pass_on)
    return seen


def report_in(answer: str) -> dict[str, Any]:
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    report: dict[str, Any] = events[-1]["ksteer"]["choices"][0]
    return report


def test_a_slider_changes_the_steered_side_and_not_the_plain_one(screen: Screen) -> None:
    screen.open().send()
    plain = screen.text("plain")
    assert plain
    assert screen.text("steered") == plain
    screen.press("empathetic", "End")
    screen.again()
    assert screen.text("plain") == plain
    empathetic = screen.text("steered")
    assert empathetic != plain
    screen.press("empathetic", "Home")
    screen.press("casual", "End")
    screen.again()
    assert screen.text("plain") == plain
    assert screen.text("steered") not in (plain, empathetic)
    assert screen.preview()["avoid"] == {"empathetic": 1}
    assert screen.page.locator(".turn").count() == 1


def test_the_strip_shows_the_report(screen: Screen) -> None:
    seen = recorded(screen)
    screen.open().press("empathetic", "End")
    screen.send()
    (answer,) = [answer for body, answer in seen if body["ksteer"]]
    (edit,) = report_in(answer)["edits"]
    records = edit["layers"][0]["tokens"]
    strip = screen.page.locator("details.strip")
    for label in ("empathetic", "casual"):
        strip.locator(f'input[type=radio][value="{label}"]').check()
        cells = screen.cells()
        assert [cell["index"] for cell in cells] == [str(record["index"]) for record in records]
        for side in ("before", "after"):
            assert [float(cell[side]) for cell in cells] == [record[side][label] for record in records]
        assert all(f"{label} " in cell["label"] for cell in cells)
    shown = " ".join(cell["text"] for cell in screen.cells())
    assert shown.replace(" ", "").startswith(screen.text("steered").replace(" ", ""))
    strip.locator(".as-table summary").click()
    strip.locator("tbody").wait_for()
    assert strip.locator("tbody tr").count() == len(records)


def test_histories_stay_apart(screen: Screen) -> None:
    screen.open().press("casual", "End")
    screen.send()
    replies = {side: screen.text(side) for side in ("plain", "steered")}
    screen.send("How do I clean my lamp?")
    for side, reply in replies.items():
        body = screen.sent(side)
        assert [message["content"] for message in body["messages"]] == [
            QUESTION,
            reply,
            "How do I clean my lamp?",
        ]
    assert replies["plain"] != replies["steered"]
    assert screen.page.locator(".turn").count() == 2
    assert [d.get_attribute("open") for d in screen.page.locator("details.strip").all()] == [None, ""]
    screen.page.click("#clear")
    assert screen.page.locator(".turn").count() == 0
    screen.send()
    assert len(screen.sent("plain")["messages"]) == 1


def test_the_plain_side_opts_out_explicitly(screen: Screen) -> None:
    screen.open().press("casual", "End")
    screen.send()
    assert [body["ksteer"] for body in screen.asked if not body["ksteer"]] == [False]
    assert screen.sent("steered")["ksteer"] == {
        "probe": "tones", "method": "gradient", "target": {"casual": 1}, "report": True,
    }  # fmt: skip


def test_presets_fill_the_controls(screen: Screen) -> None:
    screen.open()
    screen.page.select_option("#preset", "warm")
    assert {label: screen.value(label) for label in LABELS} == {
        "helpful": 0.5, "expert": 0, "casual": 0, "cautious": 0, "empathetic": 1, "concise": -1,
    }  # fmt: skip
    assert screen.preview() == {"preset": "warm"}
    screen.press("helpful", "ArrowRight")
    assert screen.preview() == {"preset": "warm", "target": {"helpful": 0.55, "empathetic": 1}}
    screen.press("concise", "ArrowRight", 20)
    assert screen.preview()["avoid"] == {}
    screen.send()
    assert not screen.page.locator(".reply .error").count()
    assert screen.text("steered") != screen.text("plain")
    screen.page.select_option("#preset", "fading")
    assert screen.page.locator("#preset-note").inner_text() == "Also set by this preset: fade 20"
    assert float(screen.page.get_by_label("Strength, exact").input_value()) == 1.5
    screen.page.select_option("#method", "add")
    assert screen.page.input_value("#preset") == ""
    assert screen.preview() == {"probe": "tones", "method": "add", "target": {"casual": 1}}


def test_a_preset_that_is_a_stack_is_sent_by_name(screen: Screen) -> None:
    screen.open()
    screen.page.select_option("#preset", "two-edits")
    assert screen.page.locator("#own:disabled").count() == 1
    assert "A stack of 2 edits" in screen.page.locator("#preset-note").inner_text()
    screen.send()
    assert screen.sent("steered")["ksteer"] == {"preset": "two-edits", "report": True}
    assert screen.text("steered") != screen.text("plain")
    parts = screen.page.locator(".strip-side select option").all_inner_texts()
    assert parts == ["tones · gradient · layer 2", "tones · add · layer 2"]


def test_strength_steps_and_layers(screen: Screen) -> None:
    screen.open().press("expert", "End")
    page = screen.page
    page.get_by_label("Strength, exact").fill("0.25")
    page.get_by_label("Steps, exact").fill("3")
    page.get_by_label("Steps, exact").press("Enter")
    page.locator("#layers").get_by_text("4", exact=True).click()
    assert screen.preview() == {
        "probe": "tones", "method": "gradient", "target": {"expert": 1}, "alpha": 0.25, "num_steps": 3,
        "layers": [2, 4],
    }  # fmt: skip
    screen.send()
    assert not page.locator(".reply .error").count()
    assert page.locator(".strip-side select option").count() == 2


@pytest.mark.parametrize("name", ["curl", "Python"])
def test_what_is_copied_runs(screen: Screen, name: str) -> None:
    question = "What's the best way to $HOME `sell` \"my\" chair?\\n 'ok' é\u202e 🙂"
    screen.open().press("empathetic", "End")
    screen.press("casual", "Home")
    screen.send()
    screen.send(question)
    text = screen.copied(name)
    assert "\u202e" not in text
    command = ["sh", "-c", text] if name == "curl" else [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    if name == "curl":
        reply = json.loads(done.stdout)["choices"][0]["message"]["content"]
    else:
        reply = done.stdout.removesuffix("\n")
    assert reply == screen.text("steered")
    assert reply != screen.text("plain")


def test_what_the_server_refuses_is_shown_as_it_says_it(screen: Screen, page_server: Server) -> None:
    screen.open().press("expert", "End")
    page = screen.page
    page.get_by_text("Sampling").click()
    page.fill("#max-tokens", "1000")
    screen.send()
    for side in ("plain", "steered"):
        answer = httpx.post(f"{page_server.url}/v1/chat/completions", json=screen.sent(side), timeout=60)
        assert answer.status_code == 400
        assert screen.error(side) == answer.json()["error"]["message"]
        assert "1000" in screen.error(side)
    assert "The request failed" in screen.status()
    page.fill("#max-tokens", "")
    strength = page.get_by_label("Strength, exact")
    strength.fill("1e30")
    strength.press("Enter")
    screen.again()
    assert screen.text("plain")
    assert "alpha" in screen.error("steered")
    assert "1e+30" in screen.error("steered")
    strength.fill("0.8")
    strength.press("Enter")
    screen.send()
    assert [len(screen.sent(side)["messages"]) for side in ("plain", "steered")] == [3, 1]


def test_escape_stops_both_sides(screen: Screen) -> None:
    screen.open().press("expert", "End")
    screen.page.route(CHAT, lambda route: None)  # never answered
    screen.fill(QUESTION)
    screen.page.keyboard.press("Control+Enter")
    screen.page.wait_for_selector("#stop", state="visible")
    screen.page.keyboard.press("Escape")
    screen.wait()
    assert screen.page.locator(".reply .note").all_inner_texts() == ["Stopped.", "Stopped."]
    screen.page.unroute(CHAT)
    screen.again()
    assert screen.text("steered") != screen.text("plain")
