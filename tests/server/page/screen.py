"""The page as its user meets it: what can be set, what is sent, what is seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

QUESTION = "I want to sell my chair. Where do I start?"
REPLY_LIMIT = 60_000.0
"""Milliseconds; the first reply of a server takes seconds, the others less than one."""
CHAT = "**/v1/chat/completions"


class Screen:
    """One tab. `asked` holds the body of every request for a reply, oldest first."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = f"{url}/ksteer/"
        self.asked: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.origins: set[str] = set()
        page.on("request", self._note_request)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None
        )

    def _note_request(self, request: Any) -> None:
        self.origins.add("/".join(request.url.split("/")[:3]))
        if request.method == "POST":
            self.asked.append(json.loads(request.post_data))

    def open(self) -> Screen:
        """Load the page and wait until it knows what the server can do."""
        self.page.goto(self.url)
        self.page.wait_for_selector("#labels .slider", state="attached")
        return self

    def slider(self, label: str) -> Locator:
        return self.page.locator(f'#labels [data-label="{label}"] input')

    def press(self, label: str, key: str, times: int = 1) -> None:
        """Move a label's slider with the keyboard."""
        self.slider(label).focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def value(self, label: str) -> float:
        return float(self.slider(label).input_value())

    def fill(self, prompt: str) -> None:
        self.page.fill("#prompt", prompt)

    def send(self, prompt: str = QUESTION) -> None:
        """Send a prompt and wait for both replies."""
        self.fill(prompt)
        self.page.click("#send")
        self.wait()

    def again(self) -> None:
        self.page.click("#again")
        self.wait()

    def wait(self) -> None:
        self.page.wait_for_selector("#send", state="visible", timeout=REPLY_LIMIT)

    def text(self, side: str) -> str:
        """The last reply of `plain` or `steered`."""
        return self.page.locator(f".reply.{side} > .text").last.inner_text()

    def error(self, side: str) -> str:
        return self.page.locator(f".reply.{side} .error").last.inner_text()

    def sent(self, side: str) -> dict[str, Any]:
        """The body of the last request of a side."""
        return [body for body in self.asked if (body["ksteer"] is False) == (side == "plain")][-1]

    def preview(self) -> Any:
        """The ksteer field the next request will have."""
        return json.loads(self.page.locator("#preview").text_content() or "")["ksteer"]

    def cells(self) -> list[dict[str, str]]:
        """The last strip's cells: index, before, after, and their text."""
        return (
            self.page.locator("details.strip")
            .last.locator(".cell")
            .evaluate_all(
                "all => all.map(cell => ({...cell.dataset, text: cell.textContent, label: cell.ariaLabel}))"
            )
        )

    def copied(self, name: str) -> str:
        """What is on the clipboard after `Copy as NAME` of the last steered reply."""
        self.page.locator(".reply.steered").last.get_by_text(f"Copy as {name}").click()
        self.page.locator("#status").get_by_text(f"Copied as {name}").wait_for()
        text: str = self.page.evaluate("navigator.clipboard.readText()")
        return text

    def status(self) -> str:
        return self.page.locator("#status").inner_text()

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        width: int = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return width
