"""What a command says when something it needs is not installed."""

import pytest
import typer

from ksteer_vllm.cli.errors import clean_errors


def test_a_missing_extra_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left, clean_errors():
        raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
    assert left.value.exit_code == 2
    said = "ksteer: this needs pandas: install ksteer-vllm with its extra, [workbench]\n"
    assert capsys.readouterr().err == said


def test_another_missing_module_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"), clean_errors():
        raise ModuleNotFoundError("No module named 'nothing'", name="nothing")
