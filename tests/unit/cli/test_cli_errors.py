"""What a command says when something it needs is not installed."""

from pathlib import Path

import pytest
import typer

from ksteer_vllm.cli.errors import clean_errors


def test_a_missing_extra_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left, clean_errors():
        raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
    assert left.value.exit_code == 2
    said = "ksteer: this needs pandas: install ksteer-vllm with its extra, [workbench]\n"
    assert capsys.readouterr().err == said


def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left, clean_errors():
        (tmp_path / "absent" / "file").write_text("")
    assert left.value.exit_code == 2
    assert capsys.readouterr().err == f"ksteer: {tmp_path}/absent/file: No such file or directory\n"
    with pytest.raises(ConnectionError), clean_errors():
        raise ConnectionResetError(104, "Connection reset by peer")


def test_another_missing_module_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"), clean_errors():
        raise ModuleNotFoundError("No module named 'nothing'", name="nothing")
