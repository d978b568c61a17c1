"""The generated parts of the documentation are up to date, and every page can be reached."""

from __future__ import annotations

import re

import ksteer_vllm
from docs.generate import PARTS, stale
from tests.docs.blocks import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
SITE = (ROOT / "mkdocs.yml").read_text()
MOST_LINES_OF_README = 150


def test_generated_parts_are_fresh() -> None:
    assert stale() == [], "run `python -m docs.generate`"


def test_every_generated_part_is_on_one_page() -> None:
    marks = [name for page in PAGES for name in re.findall(r"<!-- generated: ([\w-]+) -->", page.read_text())]
    assert sorted(marks) == sorted(PARTS)


def test_every_page_is_in_the_navigation() -> None:
    assert [page.name for page in PAGES if f": {page.name}\n" not in SITE] == []


def test_the_site_takes_nothing_from_the_network() -> None:
    assert "font: false" in SITE
    assert "://" not in SITE


def test_every_public_name_has_an_entry() -> None:
    entries = re.findall(r"^::: \S*\.(\w+)$", (ROOT / "docs" / "python-api.md").read_text(), re.MULTILINE)
    assert set(ksteer_vllm.__all__) <= set(entries)
    assert len(entries) == len(set(entries))


def test_the_readme_is_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES_OF_README
