"""The best variant of a probe becomes its default edit, whole; experiments do not see default edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.bench.bench import without_default_edits
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.variants import in_a_metric, variants_for
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan
from ksteer_vllm.experiments.calibration.record import Calibration
from ksteer_vllm.experiments.calibration.run import calibrate
from ksteer_vllm.experiments.calibration.subject import CalibrationSubject
from ksteer_vllm.experiments.calibration.write import write_defaults
from ksteer_vllm.experiments.calibration.writeup import spelled
from ksteer_vllm.probes.probe import Probe
from tests.workbench.bench.small_suite import LAYER, probe, write_suite
from tests.workbench.calibration.fake_bench import FakeBench, FakeJudge

LABELS = ("a", "b", "c")
VARIANCE = "K-Steering, 8 steps, variance"


class Only(FakeBench):
    """Nothing shows its target but edits with these fields."""

    def __init__(self, **fields: Any) -> None:
        super().__init__({"mlp": 11.0, "caa": 2.6})
        self.fields = fields

    def _reply(self, job: Job) -> Reply:
        found, spec = super()._reply(job), job.spec or {}
        shows = all(spec.get(name) == value for name, value in self.fields.items())
        return found if shows or not spec else replace(found, text=str(spec["alpha"]))


@pytest.fixture
def subject(tmp_path: Path) -> CalibrationSubject:
    """The suite's MLP has statistics for the variance, and its CAA vectors three layers."""
    suite = write_suite(tmp_path / "suite", layers=(1, 2, 4))
    probe(0).with_metadata(metric_scale={"variance": {LAYER: 20.0}}).save(suite.folder / "mlp")
    return replace(CalibrationSubject.of_suite(suite.folder), labels=LABELS).only(())


def calibrated(subject: CalibrationSubject, bench: FakeBench) -> Calibration:
    plan = CalibrationPlan.of({"sizes": (1,), "prompts": 4, "rounds": 0})
    return calibrate(subject, plan, bench, FakeJudge())


def written(subject: CalibrationSubject, bench: FakeBench) -> tuple[Mapping[str, Any], Calibration]:
    found = calibrated(subject, bench)
    return write_defaults(subject, found), found


def test_a_metric_is_tried_where_there_are_statistics_and_layers_together(
    subject: CalibrationSubject,
) -> None:
    assert [variant.name for variant in subject.variants] == [
        "K-Steering, 1 step",
        "K-Steering, 8 steps",
        "K-Steering, 8 steps, softmin",
        VARIANCE,
        "CAA",
        "CAA, layers 1+2+4",
    ]
    together = subject.variants[-1]
    assert subject.layers_of(together, ()) == (None,)
    assert together.spec(["a"], ["b"], 2.0)["layers"] == [1, 2, 4]
    metadata = subject.probes["mlp"].metadata
    (alone,) = in_a_metric("p", metadata)
    assert (alone.name, alone.settings) == (
        "gradient, variance",
        {"metric": "variance", "unit": "normalised"},
    )
    assert in_a_metric("p", subject.probes["caa"].metadata) == []
    without = metadata.model_copy(update={"metric_scale": {}})
    assert VARIANCE not in [variant.name for variant in variants_for({"mlp": without})]


def test_the_best_variant_is_written_whole(subject: CalibrationSubject) -> None:
    changes, found = written(subject, Only(metric="variance"))
    edit = {
        "method": "gradient",
        "alpha": found.alpha(VARIANCE, 1),
        "metric": "variance",
        "unit": "normalised",
    }
    assert changes == {"mlp": {"default_alpha": {}, "removed": [], "default_edit": edit}}
    assert Probe.load_metadata(subject.paths["mlp"]).default_edit == edit
    assert spelled({**edit, "alpha": 0.25}) == "gradient, alpha 0.25, metric variance, unit normalised"
    changes, _ = written(subject, Only(method="nothing"))
    assert changes["mlp"]["default_edit"] is None, "an earlier one is removed"
    assert Probe.load_metadata(subject.paths["mlp"]).default_edit is None


def test_several_layers_at_once_are_one_edit(subject: CalibrationSubject) -> None:
    changes, found = written(subject, Only(layers=[1, 2, 4]))
    edit = {"method": "add", "alpha": found.alpha("CAA, layers 1+2+4", 1), "layers": [1, 2, 4]}
    assert changes["caa"]["default_edit"] == edit
    assert spelled({**edit, "alpha": 2.0}) == "add, alpha 2, layers 1+2+4"


def test_default_settings_that_come_near_are_preferred(subject: CalibrationSubject) -> None:
    changes, found = written(subject, FakeBench({"mlp": 11.0, "caa": 2.6}))
    assert changes["mlp"] == {
        "default_alpha": {"gradient": found.alpha("K-Steering, 8 steps", 1)},
        "removed": [],
    }
    assert Probe.load_metadata(subject.paths["mlp"]).default_edit is None


def test_an_experiment_does_not_see_default_edits(subject: CalibrationSubject, tmp_path: Path) -> None:
    path = subject.paths["mlp"]
    before = Probe.load_metadata(path).digest
    Probe.load(path).with_metadata(default_edit={"metric": "variance", "alpha": 3.0}).save(path)
    seen = without_default_edits(subject.paths, tmp_path / "copies")
    assert seen["caa"] == subject.paths["caa"]
    copy = Probe.load_metadata(seen["mlp"])
    assert (copy.default_edit, copy.digest) == (None, before)
    assert Probe.load_metadata(path).digest != before
