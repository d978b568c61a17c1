"""What a calibration of some variants leaves of an earlier one, and what it writes into the probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.suite import EVALUATION
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.calibration.merge import merged
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan
from ksteer_vllm.experiments.calibration.record import CALIBRATION, Calibration
from ksteer_vllm.experiments.calibration.run import calibrate
from ksteer_vllm.experiments.calibration.subject import CalibrationSubject
from ksteer_vllm.experiments.calibration.write import write_defaults
from ksteer_vllm.experiments.calibration.writeup import write_up
from ksteer_vllm.probes.probe import Probe
from tests.workbench.bench.small_suite import write_suite
from tests.workbench.calibration.fake_bench import FakeBench, FakeJudge

LABELS = ("a", "b", "c")
LIMITS = {"mlp": 11.0, "caa": 2.6}


@pytest.fixture
def subject(tmp_path: Path) -> CalibrationSubject:
    return replace(CalibrationSubject.of_suite(write_suite(tmp_path / "suite").folder), labels=LABELS)


def calibrated(subject: CalibrationSubject, bench: FakeBench | None = None, **plan: Any) -> Calibration:
    fields = CalibrationPlan.of({"sizes": (1, 2), "prompts": 4, "rounds": 1, **plan})
    return calibrate(subject, fields, bench or FakeBench(LIMITS), FakeJudge())


def combine(
    subject: CalibrationSubject, found: Calibration, earlier: Calibration
) -> tuple[Calibration, list[str]]:
    return merged(found, earlier, subject.variants, subject.digests)


def names(calibration: Calibration) -> list[str]:
    return [variant.name for variant in calibration.variants]


def test_a_calibration_knows_what_it_was_made_with(subject: CalibrationSubject) -> None:
    chosen = subject.only(["CAA"])
    found = calibrated(chosen)
    assert (found.temperature, found.max_tokens) == (FakeBench.temperature, FakeBench.max_tokens)
    assert set(found.digests) == {"caa", EVALUATION}
    write_defaults(chosen, found)
    now = {name: Probe.load_metadata(path).digest for name, path in subject.paths.items()}
    found.check(now)
    found.check({**now, "mlp": "fitted again, but not calibrated"})
    with pytest.raises(UsageError, match=r"'caa': fitted again .*`ksteer calibrate` again"):
        found.check({**now, "caa": "0" * 64})


def test_a_calibration_of_one_variant_keeps_the_others(subject: CalibrationSubject) -> None:
    earlier = calibrated(subject.only(()))
    again = calibrated(subject.only(["CAA"]), FakeBench({"caa": 0.3}))
    both, notes = combine(subject, again, earlier)
    assert notes == []
    assert names(both) == names(earlier)
    assert both.digests == earlier.digests
    assert [cell.size for cell in both.cells] == [1] * 4 + [2] * 4
    assert both.alpha("K-Steering, 8 steps", 2) == earlier.alpha("K-Steering, 8 steps", 2)
    assert both.cell("CAA", 2) == again.cell("CAA", 2) != earlier.cell("CAA", 2)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"temperature": 0.5}, "another temperature"),
        ({"max_tokens": 7}, "another max_tokens"),
        ({"avoid": "none"}, "another avoid"),
        ({"metric": "propensity"}, "another metric"),
        ({"judge": "openai", "avoid": "none"}, "another judge, another avoid"),
    ],
)
def test_what_was_calibrated_otherwise_is_dropped_and_said(
    subject: CalibrationSubject, changes: Mapping[str, Any], why: str
) -> None:
    earlier = calibrated(subject.only(())).model_copy(update=changes)
    both, notes = combine(subject, calibrated(subject.only(["CAA"])), earlier)
    assert names(both) == ["CAA"]
    assert len(notes) == 1
    assert "K-Steering, 1 step" in notes[0]
    assert notes[0].endswith(f"calibrated with {why}")


def test_another_budget_is_another_calibration(subject: CalibrationSubject) -> None:
    both, notes = combine(
        subject, calibrated(subject.only(["CAA"]), budget=0.5), calibrated(subject.only(()))
    )
    assert names(both) == ["CAA"]
    assert "another coherence rule (budget" in notes[0]


def test_only_the_variants_of_a_probe_fitted_again_are_dropped(subject: CalibrationSubject) -> None:
    earlier = calibrated(subject.only(()))
    stale = earlier.model_copy(update={"digests": {**earlier.digests, "mlp": "0" * 64}})
    both, notes = combine(subject, calibrated(subject.only(["K-Steering, 8 steps"])), stale)
    assert names(both) == ["K-Steering, 8 steps", "CAA"]
    assert [note.rpartition(": ")[2] for note in notes] == ["its probe was fitted again, or is gone"]


def test_each_variants_own_smallest_size_is_written(subject: CalibrationSubject) -> None:
    chosen = subject.only(["CAA"])
    both, _ = combine(subject, calibrated(chosen, sizes=(2,)), calibrated(subject.only(()), sizes=(1,)))
    written = write_defaults(chosen, both, probes=["caa"])
    assert written == {"caa": {"default_alpha": {"add": both.alpha("CAA", 2)}, "removed": []}}
    assert Probe.load_metadata(subject.paths["mlp"]).default_alpha == {}


def test_a_method_without_a_coherent_strength_loses_the_one_it_had(subject: CalibrationSubject) -> None:
    path = subject.paths["caa"]
    Probe.load(path).with_metadata(default_alpha={"add": 9.0, "random": 3.0}).save(path)
    found = calibrated(subject.only(["CAA"]), FakeBench({"caa": 1e-9}))
    written = write_defaults(subject, found)
    assert written == {"caa": {"default_alpha": {}, "removed": ["add"]}}
    assert Probe.load_metadata(path).default_alpha == {"random": 3.0}
    report = write_up(
        WriteUp(subject.folder / CALIBRATION, "Calibration"), found, written, notes=["look here"]
    )
    text = report.read_text()
    assert "add's earlier strength removed" in text
    assert "**Note:** look here." in text


class Layered(FakeBench):
    """CAA shows its target at layer 4 only, random directions at layer 1, and at layer 4 all but c; `dead`:
    (probe's method, layer) without a coherent reply."""

    dead: tuple[str, int] = ("", 0)

    def _reply(self, job: Job) -> Reply:
        found = super()._reply(job)
        if job.spec is None:
            return found
        at = (job.spec["method"], job.spec["layers"][0])
        shows = at in (("add", 4), ("random", 1)) or (
            at == ("random", 4) and "c" not in job.tags.get("target", ())
        )
        return replace(
            found,
            text=found.text if shows else str(job.spec["alpha"]),
            nll=9.0 if at == self.dead else found.nll,
        )


@pytest.mark.parametrize("dead", [("", 0), ("random", 4)])
def test_all_methods_of_a_probe_are_written_for_one_layer(tmp_path: Path, dead: tuple[str, int]) -> None:
    suite = write_suite(tmp_path / "suite", layers=(1, 2, 4))
    path = suite.paths["caa"]
    Probe.load(path).with_metadata(default_alpha={"random": 3.0}).save(path)
    subject = replace(CalibrationSubject.of_suite(suite.folder), labels=LABELS).only(
        ["CAA", "random direction"]
    )
    bench = Layered(LIMITS)
    bench.dead = dead
    found = calibrated(subject, bench, sizes=(1,), layers=(1, 4))
    assert (found.layer("CAA"), found.layer("random direction")) == (4, 1)
    written = write_defaults(subject, found)["caa"]
    assert written["default_layers"] == (4,)
    at_4 = {cell.variant: cell.best for cell in found.cells if cell.layer == 4}
    wanted = {"add": at_4["CAA"]} | ({} if dead[0] else {"random": at_4["random direction"]})
    assert written["default_alpha"] == wanted
    metadata = Probe.load_metadata(path)
    assert (metadata.default_layers, metadata.default_alpha) == ((4,), wanted)
