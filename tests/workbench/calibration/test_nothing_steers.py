"""A strength is written only where it beats unsteered replies; elsewhere the reason is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ksteer_vllm.bench.chance import INTERVAL
from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.bench.jobs import SAMPLED, Job, Reply
from ksteer_vllm.bench.judges import Verdict
from ksteer_vllm.bench.judges.probe import check_reader
from ksteer_vllm.bench.suite import EVALUATION
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.calibration import command
from ksteer_vllm.experiments.calibration.command import CalibrationRequest, calibrate_folder
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan
from ksteer_vllm.experiments.calibration.record import CALIBRATION, Calibration, Gain
from ksteer_vllm.experiments.calibration.run import calibrate
from ksteer_vllm.experiments.calibration.scores import Scored, gain
from ksteer_vllm.experiments.calibration.subject import CalibrationSubject
from ksteer_vllm.experiments.calibration.verdict import where_nothing_steers
from ksteer_vllm.experiments.calibration.write import write_defaults
from ksteer_vllm.experiments.calibration.writeup import calibration_frame, write_up
from ksteer_vllm.probes.probe import Probe
from tests.workbench.bench.small_suite import LABELS, write_suite
from tests.workbench.calibration.fake_bench import FakeBench, FakeJudge

LIMITS = {"mlp": 11.0, "caa": 2.6}


class Everywhere:
    """Finds every label in every text: a judge that sees nothing."""

    name = "everywhere"

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        return [Verdict(frozenset("abc")) for _ in replies]


class Chatty(FakeBench):
    """Unsteered replies to two prompts of four show a, b and c already."""

    def _reply(self, job: Job) -> Reply:
        found = super()._reply(job)
        return replace(found, text="a b c") if job.spec is None and job.seed % 4 < 2 else found


@pytest.fixture
def subject(tmp_path: Path) -> CalibrationSubject:
    found = CalibrationSubject.of_suite(write_suite(tmp_path / "suite").folder).only(["CAA"])
    return replace(found, labels=("a", "b", "c"))


def calibrated(subject: CalibrationSubject, bench: FakeBench, judge: Any = None, **plan: Any) -> Calibration:
    fields = CalibrationPlan.of({"sizes": (1, 2), "prompts": 4, "rounds": 1, **plan})
    return calibrate(subject, fields, bench, judge or FakeJudge())


def test_a_flat_calibration_writes_nothing_and_says_so(subject: CalibrationSubject) -> None:
    path = subject.paths["caa"]
    Probe.load(path).with_metadata(default_alpha={"add": 9.0}).save(path)
    found = calibrated(subject, FakeBench(LIMITS), Everywhere())
    assert found.alpha("CAA", 1) is not None, "the middle of a flat curve, as a figure"
    assert found.cell("CAA", 1).strength("best") is None
    assert write_defaults(subject, found) == {"caa": {"default_alpha": {}, "removed": ["add"]}}
    assert Probe.load_metadata(path).default_alpha == {}
    lines = list(where_nothing_steers(found, ["a"]))
    assert [line.partition(": flat")[0] for line in lines[:2]] == [
        "nothing steers here: CAA, 1 label",
        "nothing steers here: CAA, 2 labels",
    ]
    assert "the judge (everywhere) gives 1.00 to 1.00 at every coherent strength, and 1.00 to" in lines[0]
    assert lines[2] == "the replies that the probes were fitted to do not show a"
    report = write_up(WriteUp(subject.folder / CALIBRATION, "Calibration"), found).read_text()
    assert "## Where nothing steers" in report
    assert "- nothing steers here: CAA, 1 label: flat" in report


def test_the_unsteered_row_is_in_the_table_and_what_beats_it_is_written(subject: CalibrationSubject) -> None:
    found = calibrated(subject, FakeBench(LIMITS))
    assert list(where_nothing_steers(found)) == []
    frame = calibration_frame(found, chosen=True)
    assert list(zip(frame["variant"], frame["labels"], strict=True)) == [
        ("unsteered", 1), ("CAA", 1), ("unsteered", 2), ("CAA", 2),
    ]  # fmt: skip
    assert frame["on target"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert frame["over unsteered"][1] == "+1.00 [+1.00, +1.00]"
    assert write_defaults(subject, found)["caa"]["default_alpha"] == {"add": found.alpha("CAA", 1)}


def test_prompts_are_paired(subject: CalibrationSubject) -> None:
    """Where four of six prompts show the labels unsteered, steering gains on the other two only."""
    found = calibrated(subject, Chatty(LIMITS), prompts=6)
    assert found.unsteered[1].score == pytest.approx(2 / 3)
    point = found.cell("CAA", 1).at(found.alpha("CAA", 1))
    assert point is not None
    assert point.gain is not None
    assert point.gain.mean == pytest.approx(1 / 3)
    assert set(found.cell("CAA", 1).by_label) == {"a", "b", "c"}


def test_labels_that_nothing_steers_are_named(subject: CalibrationSubject) -> None:
    class Deaf(FakeBench):
        def _reply(self, job: Job) -> Reply:
            found = super()._reply(job)
            return replace(found, text=found.text.replace(" b", "")) if job.spec else found

    found = calibrated(subject, Deaf(LIMITS), sizes=(1,))
    assert list(where_nothing_steers(found)) == [
        "nothing steers here: CAA, single labels: b +0.00 [+0.00, +0.00] over unsteered"
    ]
    assert write_defaults(subject, found)["caa"]["default_alpha"]


def test_only_incoherent_strengths_are_a_reason(subject: CalibrationSubject) -> None:
    found = calibrated(subject, FakeBench({"caa": 1e-9}), sizes=(1,))
    (line,) = where_nothing_steers(found)
    assert line == "nothing steers here: CAA, 1 label: no strength tried leaves enough replies coherent"


def scored(values: Sequence[bool | None]) -> list[Scored]:
    return [Scored(("a",), seed, True, value, None, None) for seed, value in enumerate(values)]


def test_the_interval_widens_with_the_strengths_that_were_chosen_from() -> None:
    """9 of 12 prompts against 4: enough for one strength, not for the best of twenty."""
    steered, plain = scored([True] * 9 + [False] * 3), scored([False] * 5 + [True] * 4 + [False] * 3)
    one, best_of = (gain(steered, plain, "judge", strengths=count) for count in (1, 1000))
    assert one is not None
    assert best_of is not None
    assert one.mean == best_of.mean == pytest.approx(5 / 12)
    assert one.beats_unsteered
    assert not best_of.beats_unsteered
    assert gain(scored([None]), plain, "judge") is None
    assert not Gain(mean=0.1, low=0.0, high=0.2).beats_unsteered


class Greedy(FakeBench):
    """Greedy replies are likelier than sampled ones."""

    temperature = 0.0

    def _reply(self, job: Job) -> Reply:
        found = super()._reply(job)
        return replace(found, nll=2.0 if job.temperature == SAMPLED else 0.1) if job.spec is None else found


def test_a_greedy_run_takes_its_limit_from_sampled_replies(subject: CalibrationSubject) -> None:
    greedy = calibrated(subject, Greedy(LIMITS), rounds=0)
    assert greedy.coherence.max_perplexity == pytest.approx(1.5 * 2.718281828**2)
    assert greedy.temperature == 0.0


METRICS = {
    "replies": {"labels": {name: {"balanced_accuracy": 0.5, INTERVAL: [0.4, 0.6]} for name in LABELS[:1]}}
}


def test_a_judge_at_chance_is_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class _Started(Exception):
        pass

    def start(*_: Any, **__: Any) -> None:
        raise _Started

    monkeypatch.setattr(command, "Bench", start)
    suite = write_suite(tmp_path / "suite")
    reader = Probe.load(suite.folder / EVALUATION).with_metadata(metrics=METRICS)
    reader.save(suite.folder / EVALUATION)
    request = CalibrationRequest(suite.folder)
    says = rf"judge: the evaluation probe does not tell {LABELS[0]} 0.50 \[0.40, 0.60\].*--allow-chance-judge"
    with pytest.raises(UsageError, match=says):
        calibrate_folder(request, Console(quiet=True))
    with pytest.raises(_Started):
        calibrate_folder(replace(request, allow_chance_judge=True), Console(quiet=True))
    with pytest.raises(_Started):
        calibrate_folder(replace(request, judge="reader"), Console(quiet=True))
    check_reader(reader, LABELS[1:])
    check_reader(None, LABELS)
