"""Servers that one real server cannot be: hostile names, a key, no chat template, no reports. The page and
its files come from the real one; what `/v1` answers is made up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.page.screen import CHAT, REPLY_LIMIT, Screen

if TYPE_CHECKING:
    from playwright.sync_api import Request, Route

pytestmark = pytest.mark.slow

IMG = '<img src=x onerror="document.title=1">'
SCRIPT = "</span><script>document.title=2</script>"
RTL = "\u202eevil\u202c עברית"
LONG = "w" * 300
HOSTILE = (IMG, SCRIPT, RTL, LONG, "__proto__", "constructor", "🙂 \u0000\u001b[31m", "a\"b'c`${1}")

CARD: dict[str, Any] = {
    "name": IMG, "digest": "0", "family": "mlp", "labels": list(HOSTILE), "layers": [], "default_layers": [1],
    "methods": ["gradient", "reflect"], "default_alpha": {}, "width": 8, "activation_scale": False,
}  # fmt: skip
INFO: dict[str, Any] = {
    "versions": {"ksteer": IMG, "vllm": "1", "torch": "2"},
    "model": {"name": IMG, "root": IMG, "hidden_size": 8, "num_layers": 4, "model_type": "llama"},
    "layers": [0, 1, 2], "limits": {"max_steps": 16}, "reports": True, "default": None, "probes": [IMG],
    "presets": list(HOSTILE),
    "methods": {"mlp": {"gradient": ["target", "avoid", "alpha", "num_steps"], "reflect": ["avoid"]}},
    "lifecycle": {"probe_dirs": 0, "admin_key": False}, "features": {},
}  # fmt: skip
PRESETS = [
    {
        "name": name,
        "spec": {"probe": IMG, "target": [name], "where": IMG},
        "model": f"m:{name}",
        "default": False,
    }
    for name in HOSTILE
]


def events(*chunks: Any) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def report_of(tokens: list[str]) -> dict[str, Any]:
    probabilities = {label: 0.25 for label in HOSTILE}
    records = [
        {
            "position": index, "part": "generation", "index": index, "steps": 8, "shift": 0.1,
            "before": probabilities, "after": {label: None for label in HOSTILE},
        }
        for index in range(len(tokens))
    ]  # fmt: skip
    layers = [{"layer": 1, "labels": list(HOSTILE), "tokens": records}]
    edit = {"probe": IMG, "method": SCRIPT, "layers": layers}
    return {"index": 0, "edits": [edit], "tokens_steered": len(tokens), "mean_shift": None}


def answer(request: Request) -> str:
    """A reply of hostile tokens, with a report where it was asked for."""
    body = json.loads(request.post_data or "")
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": token}, "logprobs": {"content": [{"token": token}]}}]}
        for token in HOSTILE
    ]
    if body["ksteer"] and body["ksteer"].get("report"):
        chunks.append({"choices": [], "ksteer": {"choices": [report_of(list(HOSTILE))]}})  # type: ignore[dict-item]
    return events(*chunks)


def pretend(
    screen: Screen,
    info: dict[str, Any],
    reply: Callable[[Route, Request], None] | None = None,
    card: dict[str, Any] = CARD,
) -> None:
    """Have the page meet this server."""

    def streamed(route: Route, request: Request) -> None:
        route.fulfill(content_type="text/event-stream", body=answer(request))

    screen.page.route("**/v1/ksteer", lambda route: route.fulfill(json=info))
    screen.page.route(
        "**/v1/ksteer/probes", lambda route: route.fulfill(json={"object": "list", "data": [card]})
    )
    screen.page.route(
        "**/v1/ksteer/presets", lambda route: route.fulfill(json={"object": "list", "data": PRESETS})
    )
    screen.page.route(CHAT, reply or streamed)


def test_hostile_names_and_replies_are_text(screen: Screen) -> None:
    pretend(screen, INFO)
    page = screen.open().page
    assert page.locator("#labels .name").all_text_contents() == list(HOSTILE)
    assert page.locator("#preset option").all_text_contents()[1:] == list(HOSTILE)
    for row in range(len(HOSTILE)):
        page.locator("#labels input").nth(row).focus()
        page.keyboard.press("End")
    assert list(screen.preview()["target"]) == list(HOSTILE)
    screen.send(f"{IMG}{SCRIPT}{RTL}{LONG}")
    assert screen.text("steered") == "".join(HOSTILE)
    assert page.locator(".strip-label .name").all_text_contents()[:-1] == list(HOSTILE)
    assert len(screen.cells()) == len(HOSTILE)
    page.locator(".as-table summary").click()
    page.locator("#preset").select_option(IMG)
    assert page.title() == "ksteer"
    assert page.locator("img").count() == 1  # the page's own
    assert page.locator("script").count() == 1
    assert screen.overflow() <= 0
    page.set_viewport_size({"width": 360, "height": 700})
    assert screen.overflow() <= 0


def test_hostile_errors_are_text(screen: Screen) -> None:
    def refuse(route: Route, request: Request) -> None:
        route.fulfill(status=400, json={"error": {"message": f"{IMG} {RTL}", "code": 400}})

    pretend(screen, INFO, refuse)
    screen.open().send("x")
    assert screen.error("plain") == f"{IMG} {RTL}"
    assert screen.page.locator("img").count() == 1


def test_a_key_is_asked_for_and_kept_for_the_tab(screen: Screen) -> None:
    pretend(screen, INFO)
    wanted = "Bearer a secret"

    def guarded(route: Route, request: Request) -> None:
        if request.headers.get("authorization") == wanted:
            route.fallback()
        else:
            route.fulfill(status=401, json={"error": "Unauthorized"})

    page = screen.page
    page.route("**/v1/**", guarded)
    page.goto(screen.url)
    page.wait_for_selector("#panel-notice", state="visible")
    assert "API key" in page.locator("#panel-notice").inner_text()
    assert page.evaluate("document.activeElement.id") == "api-key"
    page.keyboard.type("a secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#labels .slider")
    assert not page.locator("#panel-notice").is_visible()
    screen.send("x")
    assert screen.text("plain") == "".join(HOSTILE)
    assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", screen.url]
    copied = screen.copied("curl")
    assert "secret" not in copied
    assert '-H "Authorization: Bearer $OPENAI_API_KEY"' in copied
    screen.open()
    assert page.input_value("#api-key") == "a secret"


def test_a_model_without_a_chat_template_completes(screen: Screen) -> None:
    message = "default chat template is no longer allowed, so you must provide a chat template"

    def refuse(route: Route, request: Request) -> None:
        route.fulfill(status=400, json={"error": {"message": message, "code": 400}})

    def complete(route: Route, request: Request) -> None:
        prompt = json.loads(request.post_data or "")["prompt"]
        chunk = {"choices": [{"index": 0, "text": f" after {prompt}", "logprobs": {"tokens": [" after"]}}]}
        route.fulfill(content_type="text/event-stream", body=events(chunk))

    pretend(screen, INFO, refuse)
    screen.page.route("**/v1/completions", complete)
    screen.open().send("one")
    assert [screen.text(side) for side in ("plain", "steered")] == [" after one"] * 2
    assert message in screen.status()
    screen.send("two")
    assert screen.sent("plain")["prompt"] == "one after one\ntwo"
    assert "messages" not in screen.sent("plain")


def test_without_reports_the_strip_says_why(screen: Screen) -> None:
    pretend(screen, {**INFO, "reports": False})
    page = screen.open().page
    page.locator("#labels input").first.focus()
    page.keyboard.press("End")
    screen.send("x")
    assert "report" not in screen.sent("steered")["ksteer"]
    assert "logprobs" not in screen.sent("steered")
    assert not screen.page.locator("details.strip").count()
    assert "--no-ksteer-reports" in page.locator(".no-strip").inner_text()
    assert page.locator("#want-report").is_disabled()


def test_a_method_that_only_avoids(screen: Screen) -> None:
    pretend(screen, INFO)
    page = screen.open().page
    page.select_option("#method", "reflect")
    field = page.locator("#labels input").first
    assert [field.get_attribute(name) for name in ("min", "max")] == ["-1", "0"]
    field.focus()
    page.keyboard.press("Home")
    assert screen.preview() == {"probe": IMG, "method": "reflect", "avoid": {IMG: 1}}
    assert not page.locator("#strength-fields").is_visible()


def test_what_a_probe_was_calibrated_with_is_shown_and_not_sent(screen: Screen) -> None:
    edit = {"metric": "variance", "alpha": 0.3, "num_steps": 4, "layers": [0, 2]}
    own = {"label_alpha": {SCRIPT: 0.6}}
    pretend(screen, INFO, card={**CARD, "default_edit": edit, "metrics": {"variance": [1]}, **own})
    page = screen.open().page
    page.locator("#labels input").first.focus()
    page.keyboard.press("End")
    assert screen.preview() == {"probe": IMG, "method": "gradient", "target": {IMG: 1}}
    assert "metric variance" in page.locator("#preset-note").inner_text()
    strength = page.get_by_label("Strength, exact")
    assert strength.input_value() == "0.3"
    page.locator("#labels input").nth(1).focus()
    page.keyboard.press("End")
    assert strength.input_value() == "0.45", "the mean of the two labels' own"
    assert screen.preview() == {"probe": IMG, "method": "gradient", "target": {IMG: 1, SCRIPT: 1}}
    assert page.locator("#layers input:checked").count() == 2
    steps = page.get_by_label("Steps, exact")
    assert steps.input_value() == "4"
    steps.fill("8")
    steps.press("Enter")
    assert screen.preview()["num_steps"] == 8


def test_an_error_in_mid_stream(screen: Screen) -> None:
    def half(route: Route, request: Request) -> None:
        chunk = {"choices": [{"index": 0, "delta": {"content": "half"}}]}
        error = {"error": {"message": "engine died", "code": 500}}
        route.fulfill(content_type="text/event-stream", body=events(chunk, error))

    pretend(screen, INFO, half)
    screen.open().send("x")
    assert screen.text("plain") == "half"
    assert screen.error("plain") == "engine died"


def test_a_stream_that_ends_early(screen: Screen) -> None:
    """Closed as if all were well, but without the last event."""

    def half(route: Route, request: Request) -> None:
        whole = events({"choices": [{"index": 0, "delta": {"content": "half"}}]})
        route.fulfill(content_type="text/event-stream", body=whole.removesuffix("data: [DONE]\n\n"))

    pretend(screen, INFO, half)
    screen.open().send("x")
    assert screen.text("plain") == "half"
    assert screen.error("plain") == "The connection was lost."
    assert "Done" not in screen.status()


DONE = b"data: [DONE]\n\n"


def event(content: str) -> bytes:
    chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": content}}]}, ensure_ascii=False)
    return f"data: {chunk}\r\n\r\n".encode()


@contextmanager
def streaming(screen: Screen, pieces: Callable[[], Iterable[bytes]]) -> Iterator[None]:
    """The page asks a server of its own, which answers every request with an event stream of these pieces."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for piece in pieces():
                self.wfile.write(piece)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        pretend(screen, INFO, lambda route, _: route.continue_(url=address))
        yield
        server.shutdown()


def test_characters_cut_by_the_network(screen: Screen) -> None:
    text = "é→🙂"

    def crumbs() -> Iterator[bytes]:
        for byte in event(text) + DONE:
            yield bytes([byte])
            time.sleep(0.005)

    with streaming(screen, crumbs):
        screen.open().send("x")
    assert [screen.text(side) for side in ("plain", "steered")] == [text] * 2


def test_both_sides_stream_at_once(screen: Screen) -> None:
    """Each character is seen on both sides before the server has the next."""
    from playwright.sync_api import expect

    text = "abcdefgh"
    let_go = [threading.Event() for _ in text]

    def in_turn() -> Iterator[bytes]:
        for character, turn in zip(text, let_go, strict=True):
            assert turn.wait(60)
            yield event(character)
        yield DONE

    with streaming(screen, in_turn):
        screen.open().fill("x")
        screen.page.click("#send")
        for count, turn in enumerate(let_go, start=1):
            turn.set()
            for side in ("plain", "steered"):
                reply = screen.page.locator(f".reply.{side} > .text").last
                expect(reply).to_have_text(text[:count], timeout=REPLY_LIMIT)
        screen.wait()


def test_a_server_whose_steering_cannot_be_read(screen: Screen) -> None:
    screen.page.route("**/v1/ksteer", lambda route: route.fulfill(status=404, json={"detail": "Not Found"}))
    screen.page.goto(screen.url)
    screen.page.wait_for_selector("#panel-notice", state="visible")
    assert "Not Found" in screen.page.locator("#panel-notice").inner_text()
    assert screen.page.locator("#send").is_disabled()
