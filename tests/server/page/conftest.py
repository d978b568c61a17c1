"""One real server on the shipped model with a probe fitted on it, and a headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from ksteer_vllm.demo import MODEL_DIR
from testbed.serving import Server, serve
from tests.server.page.screen import Screen
from tests.support.demo_probe import demo_probe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LIMIT = 120_000.0
"""Milliseconds a browser or a page may take for any one thing."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip

PRESETS = """\
warm: {probe: tones, target: {empathetic: 2, helpful: 1}, avoid: [concise]}
fading: {probe: tones, target: [casual], alpha: 1.5, fade: 20}
two-edits: {stack: [{probe: tones, target: [expert]}, {probe: tones, target: [cautious], method: add}]}
"""


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory, serving: None) -> Iterator[Server]:
    """The shipped model, probe `tones`, PRESETS, and every layer open."""
    work = tmp_path_factory.mktemp("page")
    probe = demo_probe(tmp_path_factory)
    (work / "presets.yaml").write_text(PRESETS)
    flags = (
        "--plugin", "ksteer", "--ksteer-probe", f"tones={probe}", "--ksteer-layers", "all",
        "--ksteer-presets", str(work / "presets.yaml"), "--kv-cache-memory-bytes", str(32 << 20),
    )  # fmt: skip
    with serve(MODEL_DIR, work / "server.log", *flags) as server:
        server.wait_until_healthy()
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium that ends with its file: while Playwright runs, an event loop runs in this thread,
    and `asyncio.run` of any other test would be refused."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(BROWSER_FLAGS), timeout=LIMIT)
        yield browser
        browser.close()


def _screen(page: Page, server: Server) -> Iterator[Screen]:
    page.set_default_timeout(LIMIT)
    screen = Screen(page, server.url)
    yield screen
    assert screen.origins <= {server.url}
    refused = (
        "Failed to load resource: the server responded with a status of 40",
        "Failed to load resource: net::",
    )
    assert [text for text in screen.complaints if not text.startswith(refused)] == []


@pytest.fixture
def screen(browser: Browser, page_server: Server) -> Iterator[Screen]:
    """A tab of a desktop browser. Nothing may leave the server's origin or complain in the console."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 860}, permissions=["clipboard-read", "clipboard-write"]
    )
    yield from _screen(context.new_page(), page_server)
    context.close()


@pytest.fixture
def phone(browser: Browser, page_server: Server) -> Iterator[Screen]:
    """A tab of a phone's browser."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    yield from _screen(context.new_page(), page_server)
    context.close()
