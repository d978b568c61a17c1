"""`ksteer chat --url` on the page's server."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from ksteer_vllm.cli import app
from testbed.serving import Server


def test_a_conversation_with_a_server(page_server: Server, tmp_path: Path) -> None:
    """Greedy, so that a reply is unsteered if and only if it is the one asked for as such."""
    file = tmp_path / "chat.json"
    lines = ["How do I repair my kettle?", "/casual 1", "/again", "/plain", f"/save {file}"]
    arguments = ["chat", "tones", "--url", page_server.url, "--temperature", "0", "--max-tokens", "24"]
    done = CliRunner().invoke(app, arguments, input="\n".join(lines))
    assert done.exit_code == 0, done.output
    (exchange,) = json.loads(file.read_text())["exchanges"]
    first, steered, plain = exchange["replies"]
    assert first["text"] == plain["text"] != steered["text"]
    assert f"[casual 1]\n{steered['text']}\n" in done.output


def test_what_the_server_refuses_is_one_line(page_server: Server) -> None:
    arguments = ["chat", "tones", "--url", page_server.url, "--edit", '{"layers": [99]}']
    done = CliRunner().invoke(app, arguments, input="/casual 1\nHow?\n")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("400: ksteer.layers: ")
