"""Pictures of the page of a running server: `python examples/screenshots/make.py [URL]`.

After `ksteer demo --model shipped --out tones-out`:
`vllm serve tones-out/model --ksteer-probe tones=tones-out/probe --ksteer-presets FILE`.
Needs playwright and an installed Chromium.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
PICTURES: dict[str, dict[str, Any]] = {
    "page-light": DESKTOP,
    "page-dark": {**DESKTOP, "color_scheme": "dark"},
    "page-phone": PHONE,
}
WEIGHTS = {"casual": "1", "cautious": "1", "expert": "-0.5"}
QUESTION = "I want to sell my chair. Where do I start?"


def fill(page: Page, url: str) -> None:
    """Steer a few labels and wait for both replies and their strip."""
    page.goto(f"{url}/ksteer/")
    page.wait_for_selector("#labels .slider", state="attached")
    folded = not page.locator("#preset").is_visible()
    if folded:
        page.click("#panel > summary")
    for label, weight in WEIGHTS.items():
        page.locator(f'#labels [data-label="{label}"] input').fill(weight)
    if folded:
        page.click("#panel > summary")
    page.fill("#prompt", QUESTION)
    page.click("#send")
    page.wait_for_selector("details.strip", timeout=60_000)
    page.locator(".cell").nth(4).hover()


def main(url: str = "http://127.0.0.1:8000") -> None:
    browser_path = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
        for name, options in PICTURES.items():
            page = browser.new_context(**options).new_page()
            fill(page, url)
            page.screenshot(path=Path(__file__).with_name(f"{name}.png"), full_page=options is PHONE)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
