"""How DATA is read and how missing replies are written: the same options in every command that has them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ksteer_vllm.bench.sampling import ReplyPlan
from ksteer_vllm.cli import app, options
from ksteer_vllm.errors import KSteerError

REPLIES = "--reply-temperature 0.5 --reply-tokens 9 --reply-batch 4 --replies kept.jsonl"
WANTED = ReplyPlan(reply_temperature=0.5, reply_tokens=9, reply_batch=4, replies=Path("kept.jsonl"))


class Stop(KSteerError):
    """Raised in place of the work."""


def keep_call(monkeypatch: pytest.MonkeyPatch, where: str) -> dict[str, Any]:
    """The keyword and positional arguments that a function is called with, which then does nothing."""
    found: dict[str, Any] = {}

    def kept(*arguments: Any, **named: Any) -> Any:
        found.update(named, arguments=arguments)
        raise Stop("kept")

    monkeypatch.setattr(where, kept)
    return found


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(
        "Q;kind;id\n" + "".join(f"Why {n}?;{'warm' if n % 2 else 'dry'};{n}\n" for n in range(40))
    )
    return path


OF_TABLE = ["--prompt-column", "Q", "--label-column", "kind", "--ignore-columns", "id", "--chat"]


def test_fit_and_layers_write_replies_alike_and_share_them(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = keep_call(monkeypatch, "ksteer_vllm.experiments.suite.single.fit_single")
    swept = keep_call(monkeypatch, "ksteer_vllm.experiments.layers.sweep.sweep_layers")
    for command in ("fit", "layers"):
        result = run(command, "m", str(table), "--out", str(tmp_path), *OF_TABLE, *REPLIES.split())
        assert result.output.endswith("ksteer: kept\n"), result.output
    assert fitted["arguments"][3].replies == swept["arguments"][3].replies == WANTED
    assert fitted["arguments"][2] == swept["suite"] == tmp_path


def test_calibrate_reads_data_as_fit_does(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = keep_call(monkeypatch, "ksteer_vllm.experiments.calibration.command.calibrate_folder")
    assert run("calibrate", "probe", "--data", str(table), *OF_TABLE).output.endswith("ksteer: kept\n")
    (request, _) = called["arguments"]
    dataset = request.open_data(request.data)
    assert dataset.labels == ("dry", "warm")
    assert [message.role for message in dataset.rows[0].prompt] == ["user"]
    refused = run("calibrate", "suite", "--chat", "--prompt-column", "Q")
    assert refused.exit_code == 2
    assert "chat, prompt_column: say how --data is read; give it, too" in refused.output


def test_at_a_terminal_an_unused_column_is_asked_about(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_call(monkeypatch, "ksteer_vllm.experiments.suite.single.fit_single")
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(
        options, "sys", SimpleNamespace(stdin=terminal, stderr=terminal, modules={"torch": 1})
    )
    command = [
        "fit",
        "m",
        str(table),
        "--out",
        str(tmp_path),
        "--prompt-column",
        "Q",
        "--label-column",
        "kind",
    ]
    for answer, code, end in (("y\n", 2, "ksteer: kept"), ("n\n", 2, "[y/N]: n")):
        result = CliRunner().invoke(app, command, input=answer)
        assert "column 'id' would not be used; go on without it? [y/N]" in result.output
        assert (result.exit_code, result.output.strip().endswith(end)) == (code, True), result.output
