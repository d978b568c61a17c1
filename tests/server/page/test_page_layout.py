"""By keyboard alone, on a phone, in the dark: against the real server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.server.page.screen import QUESTION, REPLY_LIMIT, Screen

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

TOUCH = 44
"""CSS pixels: the least height of what is touched."""

FOCUSED = """() => {
    const element = document.activeElement;
    const drawn = [element, element.parentElement].some(one => getComputedStyle(one).outlineStyle !== 'none');
    const name = element.ariaLabel || element.labels?.[0]?.textContent || element.textContent;
    return {name: name.trim(), drawn: drawn || element.type === 'range'};
}"""
"""A slider draws its focus on its thumb, which scripts cannot ask for."""


def tab_to(page: Page, name: str, most: int = 60) -> list[dict[str, Any]]:
    """Press Tab until what is called `name` has the focus; every stop on the way."""
    stops = []
    for _ in range(most):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUSED))
        if stops[-1]["name"].startswith(name):
            return stops
    raise AssertionError(f"no way to {name!r}: {[stop['name'] for stop in stops]}")


def test_by_keyboard_alone(screen: Screen) -> None:
    page = screen.open().page
    stops = tab_to(page, "empathetic")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert screen.value("empathetic") == 1
    assert screen.slider("empathetic").get_attribute("aria-valuetext") == "+1.00"
    stops += tab_to(page, "Prompt")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("details.strip", timeout=REPLY_LIMIT)
    assert screen.text("steered") != screen.text("plain")
    first = screen.cells()[0]
    stops += tab_to(page, "Ask again")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop", state="hidden")
    screen.wait()
    page.locator("#transcript").focus()
    stops += tab_to(page, first["label"])
    page.keyboard.press("ArrowRight")
    assert page.evaluate(FOCUSED)["name"] == screen.cells()[1]["label"].strip()
    assert screen.cells()[1]["text"] in page.locator(".readout").inner_text()
    assert [stop for stop in stops if not stop["drawn"] or not stop["name"]] == []
    assert page.locator(".cell[tabindex='0']").count() == 1


def test_an_empty_prompt_asks_again(screen: Screen) -> None:
    screen.open().send()
    screen.press("casual", "End")
    screen.page.keyboard.press("Control+Enter")
    screen.page.locator(".reply.steered[aria-busy=false]").wait_for()
    screen.wait()
    assert screen.page.locator(".turn").count() == 1
    assert screen.text("steered") != screen.text("plain")


def test_on_a_phone(phone: Screen) -> None:
    page = phone.open().page
    assert phone.overflow() <= 0
    assert not page.locator("#preset").is_visible()
    page.locator("#panel > summary").click()
    assert phone.overflow() <= 0
    phone.slider("empathetic").fill("1")
    check_targets(page)
    page.locator("#panel > summary").click()
    assert "+empathetic" in page.locator("#panel > summary").inner_text()
    phone.fill(f"{QUESTION} {'W' * 60}")
    page.locator("#send").tap()
    phone.wait()
    page.wait_for_selector("details.strip")
    page.locator(".cell").nth(2).tap()
    assert "empathetic" in page.locator(".readout").inner_text()
    assert phone.overflow() <= 0
    plain, steered = (page.locator(f".reply.{side}").bounding_box() for side in ("plain", "steered"))
    assert plain is not None
    assert steered is not None
    assert steered["y"] >= plain["y"] + plain["height"]
    assert steered["x"] == plain["x"]
    check_targets(page)


def check_targets(page: Page) -> None:
    """What is touched is tall enough; a box or a dot counts with its label."""
    heights = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, textarea, summary')]
            .map(one => ['checkbox', 'radio'].includes(one.type) ? one.closest('label') : one)
            .filter(one => one.checkVisibility() && !one.closest('dialog'))
            .map(one => [one.textContent.trim() || one.id || one.type, one.getBoundingClientRect().height])"""
    )
    assert len(heights) > 5
    assert [(name, height) for name, height in heights if height < TOUCH] == []


def test_narrow_and_wide_windows(screen: Screen) -> None:
    screen.open().press("casual", "End")
    screen.send()
    for width in (320, 500, 700, 701, 900, 1920):
        screen.page.set_viewport_size({"width": width, "height": 700})
        assert screen.overflow() <= 0, width


def test_light_dark_and_still(screen: Screen) -> None:
    page = screen.open().page
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(246, 246, 243)", "rgb(19, 20, 22)"]
    durations = []
    for motion in ("no-preference", "reduce"):
        page.emulate_media(reduced_motion=motion)  # type: ignore[arg-type]
        durations.append(
            page.evaluate("getComputedStyle(document.getElementById('send')).transitionDuration")
        )
    assert durations[0] != "0s"
    assert durations[1] == "0s"
