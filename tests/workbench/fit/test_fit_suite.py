"""A suite of several methods: kept where it was done, refused where it is another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ksteer_vllm import UsageError
from ksteer_vllm.bench.suite import Suite
from ksteer_vllm.cli import app
from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.rows import data_digest, write_rows
from ksteer_vllm.errors import DataError
from ksteer_vllm.experiments.suite.fit import EVALUATION_WIDTH, fit_suite
from ksteer_vllm.experiments.suite.plan import SuitePlan
from ksteer_vllm.fit.activations import Recorder
from ksteer_vllm.probes.probe import Probe
from tests.support.engines import GIB_OF_CACHE, OPTIONS
from tests.support.waiting import wait_until
from tests.workbench.fit.conftest import make_rows

METHODS = ("mlp", "caa", "actadd")
PLAN = SuitePlan(methods=METHODS, layers=(1, 2), options={"epochs": 2, "width": 16, "first": 1})
ENGINE = {name: value for name, value in OPTIONS.items() if name != "disable_log_stats"}


def changed(plan: SuitePlan, **fields: Any) -> SuitePlan:
    return plan.model_copy(update=fields)


@pytest.fixture(scope="module")
def dataset() -> TaskDataset:
    return TaskDataset.of("words", make_rows(240))


@pytest.fixture(scope="module")
def folder(llama: Path, dataset: TaskDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    fit_suite(str(llama), dataset, folder, PLAN, engine_options=ENGINE)
    return folder


def test_methods_and_reader_are_fitted_to_different_conversations(folder: Path, dataset: TaskDataset) -> None:
    suite, halves = Suite.open(folder), dataset.partition(0)
    assert suite.file.labels == ("dry", "warm")
    assert suite.file.layers == (1, 2)
    assert suite.file.data_digest == dataset.digest
    assert suite.file.prompts == dict(halves.prompts)
    assert set(suite.probes) == set(METHODS)
    for name, probe in suite.probes.items():
        assert probe.metadata.layers == (1, 2), name
        assert probe.metadata.training["data_digest"] == data_digest(halves.steering)
    reader = suite.evaluation
    assert reader is not None
    assert reader.metadata.layers == ()
    assert len(reader.tensors["w1"]) == EVALUATION_WIDTH != len(suite.probes["mlp"].at(1)["w1"])
    assert reader.metadata.training["seed"] == 1
    assert reader.metadata.training["rows"] == len(halves.evaluation)
    assert not (folder / "activations").exists()


def test_the_report_shows_every_method_and_the_activations(folder: Path) -> None:
    text = (folder / "fit" / "results.md").read_text()
    for name in (*METHODS, "evaluation", "auroc (tokens)", "activations.png", "data_digest"):
        assert name in text
    results = json.loads((folder / "fit" / "results.json").read_text())
    assert set(results["methods"]) == {*METHODS, "evaluation"}
    assert (folder / "fit" / "activations.png").stat().st_size > 5000


def test_what_is_there_is_not_fitted_again(
    llama: Path, dataset: TaskDataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "_engine", None)
    fit_suite(str(llama), dataset, folder, PLAN, engine_options=ENGINE)
    with pytest.raises(TypeError, match="not callable"):
        fit_suite(
            str(llama),
            dataset,
            folder,
            changed(PLAN, methods=("mlp", "ace")),
            engine_options=ENGINE,
        )


def test_an_interrupted_fit_gets_its_report_from_the_shards(
    llama: Path, dataset: TaskDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before its report, and when one is there that lacks what was fitted since."""
    plan = changed(PLAN, methods=("mlp", "caa"), keep_activations=True)
    fit_suite(str(llama), dataset, tmp_path, plan, engine_options=ENGINE)
    report, shards = tmp_path / "fit" / "results.md", tmp_path / "activations"
    monkeypatch.setattr(Recorder, "_engine", None)
    with monkeypatch.context() as patch:
        patch.setattr("ksteer_vllm.experiments.suite.writeup.write_up", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_suite(
                str(llama),
                dataset,
                tmp_path,
                changed(plan, methods=("caa", "ace")),
                engine_options=ENGINE,
            )
    assert (tmp_path / "ace" / "probe.json").exists()
    assert not report.exists()
    plan = changed(plan, methods=("mlp", "caa", "ace"), keep_activations=False)
    fit_suite(str(llama), dataset, tmp_path, plan, engine_options=ENGINE)
    text = report.read_text()
    assert "| ace" in text
    assert "activations.png" in text
    assert not shards.exists()
    report.unlink()
    shards.mkdir()
    fit_suite(str(llama), dataset, tmp_path, plan, engine_options=ENGINE)
    assert "No recorded activations are left to draw" in report.read_text()
    assert not shards.exists()


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_of_something_else_is_refused(
    llama: Path, dataset: TaskDataset, folder: Path, tmp_path: Path
) -> None:
    other = TaskDataset.of("words", dataset.rows[::-1])
    kinds = dataset.partition(0).prompts
    swapped = {"calibration": kinds["evaluation"], "evaluation": kinds["calibration"]}
    for task, plan, says in (
        (other, PLAN, "whose data_digest is"),
        (dataset, changed(PLAN, layers=(2,)), "whose layers is 1, 2, not 2"),
        (dataset, changed(PLAN, labels=("warm",)), "whose labels is dry, warm, not warm"),
        (dataset, changed(PLAN, seed=1), "whose seed is 0, not 1"),
        (replace(dataset, prompts=swapped), PLAN, "other held-out prompts"),
    ):
        with pytest.raises(UsageError, match=f"{says}.*take another folder"):
            fit_suite(str(llama), task, folder, plan, engine_options=ENGINE)
    with pytest.raises(UsageError, match=r"method: unknown 'magic'; known: .*, or all"):
        fit_suite(str(llama), dataset, folder, SuitePlan(methods=("magic",)), engine_options=ENGINE)
    data = write_rows(tmp_path / "data.jsonl", dataset.rows)
    result = CliRunner().invoke(app, ["fit", str(llama), str(data), "--out", str(folder), "--seed", "1"])
    assert result.exit_code == 2
    assert "holds a suite, to which several methods are fitted; take another folder" in result.output


def test_a_method_the_data_does_not_suit(llama: Path, dataset: TaskDataset, tmp_path: Path) -> None:
    """Named, it is an error; of all, it is left out and reported."""
    plan = changed(PLAN, layers=(), layer=1, options={"epochs": 1, "width": 8, "first": 100, "steps": 1})
    with pytest.raises(DataError, match="actadd: first: the texts with or without"):
        fit_suite(
            str(llama),
            dataset,
            tmp_path,
            changed(plan, methods=("actadd",)),
            engine_options=ENGINE,
        )
    suite = fit_suite(str(llama), dataset, tmp_path, changed(plan, methods=()), engine_options=ENGINE)
    assert "actadd" not in suite.paths
    assert {"mlp", "linear", "caa", "ace", "loreft", "lorest", "orbit", "mat_steer"} <= set(suite.paths)
    assert "Left out: actadd: first:" in (tmp_path / "fit" / "results.md").read_text()


KILLED = """
import os, signal
from ksteer_vllm.cli import app
from ksteer_vllm.experiments.suite import fit as suite
fit_once = suite.fit_once
def fit_and_die(*arguments):
    fit_once(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
suite.fit_once = fit_and_die
app()
"""
"""The command, killed by itself when its first method is done: from outside it might have gone on by then."""


@pytest.mark.slow
def test_a_killed_fit_goes_on(llama: Path, tmp_path: Path) -> None:
    """Killed when the first method is done: no process is left, its probe and the shards are; the rest
    follows."""
    data, out = write_rows(tmp_path / "data.jsonl", make_rows(240)), tmp_path / "suite"
    command = [
        *("fit", str(llama), str(data), "--out", str(out)),
        *("--method", "mlp,caa,ace", "--layer", "2", "--width", "8", "--epochs", "2"),
        *("--max-model-len", "256", "--gpu-memory-utilization", "0.1", "--dtype", "float32"),
    ]
    environment = {name: value for name, value in os.environ.items() if "MULTIPROCESSING" not in name}
    environment |= GIB_OF_CACHE
    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen(
            [sys.executable, "-c", KILLED, *command],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    assert first.wait(900) == -signal.SIGKILL, (tmp_path / "first.log").read_text()
    wait_until(lambda: not _is_running(first.pid), "no process of the killed fit is left")
    assert (out / "mlp" / "probe.json").exists()
    assert not (out / "fit").exists()
    shards = out / "activations" / "steering" / "reply" / "00000.safetensors"
    kept = {path: path.stat().st_mtime_ns for path in (out / "mlp" / "probe.json", shards)}
    second = subprocess.run(
        [str(Path(sys.executable).with_name("ksteer")), *command],
        env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert second.returncode == 0, second.stdout + second.stderr
    assert (out / "mlp" / "probe.json").stat().st_mtime_ns == kept[out / "mlp" / "probe.json"]
    suite = Suite.open(out)
    assert set(suite.probes) == {"mlp", "caa", "ace"}
    assert suite.evaluation is not None
    assert not shards.exists()


def _is_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_method_is_one_folder_and_goes_on_too(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit that stops after the recording leaves the shards; the next one needs no engine."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # no share of what the machine has free just now
    data, out = write_rows(tmp_path / "data.jsonl", make_rows(90)), tmp_path / "probe"
    command = ["fit", str(llama), str(data), "--out", str(out), "--layers", "1,2"]
    command += ["--max-model-len", "256", "--gpu-memory-utilization", "0.3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ksteer_vllm.fit.stacking.stack_layers", lambda *_: (_ for _ in ()).throw(DataError("stop"))
        )
        result = CliRunner().invoke(app, [*command, "--method", "caa"])
        assert result.exit_code == 2
        assert result.output.endswith("ksteer: stop\n")
    assert list((out / "activations" / "reply").glob("*.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "_engine", None)
        result = CliRunner().invoke(app, [*command, "--method", "caa"])
    assert result.exit_code == 0, result.output
    assert "caa of layers 1, 2, labels dry, warm" in " ".join(result.output.split())
    assert "held-out AUROC by layer" in result.output
    assert Probe.load(out).metadata.layers == (1, 2)
    assert not (out / "activations").exists()
    for options, says in (
        (["--positions", "last"], "positions: unknown 'last'; known: reply, reply-mean, prompt-last"),
        (["--preset", "paper"], "preset: paper is for mlp, not for caa"),
        (["--layers", "a"], "--layers: expected numbers such as 1,2,3, got 'a'"),
        (["--layers", "7"], "layers: the model has no layer 7; its layers are 0 to 3"),
    ):
        result = CliRunner().invoke(app, [*command, "--method", "caa", *options])
        assert result.exit_code == 2
        assert result.output.startswith(f"ksteer: {says}")
