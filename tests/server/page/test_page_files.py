"""What `/ksteer/` serves: the page's files with strict headers, below any prefix, and nothing else."""

from __future__ import annotations

import argparse
import re
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from ksteer_vllm.server.flags import add_flags
from ksteer_vllm.server.page_routes import HEADERS, attach_page, page_files

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
LARGEST = 250
"""Lines of a file."""


def client(root_path: str = "", **arguments: object) -> TestClient:
    app = Starlette()
    app.state.args = SimpleNamespace(**arguments)
    attach_page(app)
    return TestClient(app, root_path=root_path, follow_redirects=False)


@pytest.mark.parametrize("name", sorted(page_files()))
def test_every_file_has_its_type_and_the_headers(name: str) -> None:
    response = client().get(f"/ksteer/{name}")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(TYPES[name.rpartition(".")[2]])
    assert HEADERS.items() <= {key.title(): value for key, value in response.headers.items()}.items()


def test_the_policy_allows_nothing_from_elsewhere() -> None:
    policy = client().get("/ksteer/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert client().get("/ksteer/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("prefix", ["", "/behind/a/proxy"])
def test_below_a_root_path(prefix: str) -> None:
    browser = client(root_path=prefix)
    redirect = browser.get(f"{prefix}/ksteer")
    assert redirect.status_code == 307
    assert str(redirect.next_request.url).endswith(f"{prefix}/ksteer/")  # type: ignore[union-attr]
    assert browser.get(f"{prefix}/ksteer/").content == page_files()["index.html"][0]


def test_a_redirect_that_knows_no_prefix() -> None:
    """A proxy that strips its prefix: the address is relative to the one the browser asked for."""
    assert client().get("/ksteer").headers["location"] == "ksteer/"


@pytest.mark.parametrize(
    "path",
    ["nothing.js", "..%2fgate.py", "../gate.py", "%2e%2e/gate.py", "page/main.js", "__init__.py", ".", "%00"],
)
def test_nothing_else_is_served(path: str) -> None:
    response = client().get(f"/ksteer/{path}")
    assert response.status_code in (404, 307)
    assert b"import" not in response.content


def test_it_is_read_only() -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert client().request(method, "/ksteer/").status_code == 405


def test_it_can_be_turned_off() -> None:
    for path in ("/ksteer", "/ksteer/", "/ksteer/main.js"):
        assert client(ksteer_page=False).get(path).status_code == 404
        assert client(ksteer_page=None).get(path).status_code in (200, 307)


def test_the_flag() -> None:
    parser = add_flags(argparse.ArgumentParser())
    assert parser.parse_args(["--plugin", "ksteer", "--no-ksteer-page"]).ksteer_page is False
    assert parser.parse_args(["--plugin", "ksteer"]).ksteer_page is None


def test_no_inline_code_and_no_address_elsewhere() -> None:
    for name, (content, _) in page_files().items():
        text = content.decode()
        assert len(text.splitlines()) <= LARGEST, name
        if name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]* src=)", text)
            assert not re.search(r"""(src|href)=["']?(/|[a-z]+:)""", text)
        if name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
            )
            assert "localStorage" not in text
        if not name.endswith(".svg"):
            assert not re.search(r"https?://", text), name
