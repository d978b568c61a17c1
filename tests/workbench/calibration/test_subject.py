"""What is calibrated, on what, and by which judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.bench.judges import described
from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.calibration import command
from ksteer_vllm.experiments.calibration.command import CalibrationRequest
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan
from ksteer_vllm.experiments.calibration.subject import CalibrationSubject
from ksteer_vllm.probes.probe import Probe
from tests.workbench.bench.small_suite import LABELS, prompts, vectors, write_suite


def task(count: int = 90, **more: Any) -> TaskDataset:
    rows = [
        LabelledRow(prompt=f"question {k}", reply=f"reply {k}", labels=(LABELS[k % 3],)) for k in range(count)
    ]
    return TaskDataset.of("data.jsonl", rows, labels=LABELS, **more)


def fitted_to(folder: Path, digest: str) -> Path:
    return vectors().with_metadata(training={"data_digest": digest}).save(folder)


def notes(folder: Path, dataset: TaskDataset) -> Sequence[str]:
    return CalibrationSubject.of_probe(folder, dataset, judge="openai").notes


def test_prompts_of_the_probes_own_data_are_told_of(tmp_path: Path) -> None:
    own = task()
    folder = fitted_to(tmp_path / "caa", own.digest)
    (note,) = notes(folder, own)
    assert "fitted to" in note
    assert "ksteer fit --method all" in note
    assert notes(folder, task(93)) == ()
    brought = task(prompts={"calibration": prompts(2), "evaluation": prompts(2)})
    assert brought.digest == own.digest
    assert notes(folder, brought) == ()


def test_nothing_to_calibrate_is_refused(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite")
    Probe.load(suite.paths["caa"]).save(suite.folder / "random")
    with pytest.raises(UsageError, match=r"variants: 'random' has nothing to calibrate; there are: K-Steer"):
        CalibrationSubject.of_suite(suite.folder).only(["random"])


def test_an_endpoint_that_is_named_is_the_judge(tmp_path: Path) -> None:
    folder, opened = fitted_to(tmp_path / "caa", ""), lambda _: task()
    endpoint = {"url": "http://localhost:1/v1"}
    request = CalibrationRequest(folder, data="data.jsonl", open_data=opened, judge_options=endpoint)
    assert command._subject(request).judge == "openai"
    with pytest.raises(UsageError, match="judge of itself"):
        command._subject(replace(request, judge_options={}))


def test_a_judge_is_told_what_the_tasks_labels_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(command, "judge_for", lambda name, labels, **options: told.update(options))
    whole = CalibrationSubject.of_suite(write_suite(tmp_path / "suite").folder)
    subject = replace(whole, task="tones", labels=("expert", "cautious"))
    request = CalibrationRequest(subject.folder, judge_options={"url": "http://localhost:1/v1"})
    command._judge(request, subject, CalibrationPlan())
    assert told["descriptions"] == described("tones", subject.labels)
    assert set(told["descriptions"]) == {"expert", "cautious"}
