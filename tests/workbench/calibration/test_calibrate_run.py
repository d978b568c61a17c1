"""A whole calibration against replies whose coherence and success are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.bench.folder import WriteUp
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.calibration.cells import targets_of
from ksteer_vllm.experiments.calibration.grid import PILOT_SHIFT
from ksteer_vllm.experiments.calibration.plan import CalibrationPlan
from ksteer_vllm.experiments.calibration.record import CALIBRATION, Calibration
from ksteer_vllm.experiments.calibration.run import calibrate
from ksteer_vllm.experiments.calibration.subject import CalibrationSubject
from ksteer_vllm.experiments.calibration.write import write_defaults
from ksteer_vllm.experiments.calibration.writeup import write_up
from ksteer_vllm.probes.probe import Probe
from tests.workbench.bench.small_suite import write_suite
from tests.workbench.calibration.fake_bench import SHIFT_PER_ALPHA, FakeBench, FakeJudge

LABELS = ("a", "b", "c")
LIMITS = {"mlp": 11.0, "caa": 2.6}


@pytest.fixture
def subject(tmp_path: Path) -> CalibrationSubject:
    found = CalibrationSubject.of_suite(write_suite(tmp_path / "suite").folder)
    return replace(found, labels=LABELS)


def calibrated(
    subject: CalibrationSubject, limits: Mapping[str, float] = LIMITS, judge: Any = None, **plan: Any
) -> tuple[Calibration, FakeBench]:
    bench = FakeBench(limits)
    judge = judge or FakeJudge()
    plan = {"sizes": (1, 2), "prompts": 4, **plan}
    return calibrate(subject, CalibrationPlan.of(plan), bench, judge), bench


def test_it_finds_where_each_variant_stops_being_coherent(subject: CalibrationSubject) -> None:
    found, _ = calibrated(subject.only(()))
    assert [variant.name for variant in found.variants] == [
        "K-Steering, 1 step", "K-Steering, 8 steps", "K-Steering, 8 steps, softmin", "CAA",
    ]  # fmt: skip
    for variant in found.variants:
        for size in (1, 2):
            limit = LIMITS[variant.probe]
            largest = found.alpha(variant.name, size, rule="largest_coherent")
            assert largest is not None
            assert limit / 2 ** (1 / 8) < largest <= limit
            best = found.alpha(variant.name, size)
            assert best is not None
            assert limit / 2 <= best <= limit
            point = found.cell(variant.name, size).at(best)
            assert point is not None
            assert (point.on_target, point.coherent, point.replies) == (1.0, 1.0, 12)


def test_every_round_is_one_batch_over_all_cells(subject: CalibrationSubject) -> None:
    _, bench = calibrated(subject.only(()), rounds=2)
    sizes = [len(call) for call in bench.calls]
    cells, replies = 4 * 2, 12
    assert sizes == [100, 12, 12, 8 * cells * replies, cells * replies, cells * replies]


def test_the_grid_is_centred_on_the_natural_strength(subject: CalibrationSubject) -> None:
    found, _ = calibrated(subject.only(()), rounds=0)
    alphas = [point.alpha for point in found.cell("CAA", 1).points]
    assert PILOT_SHIFT / SHIFT_PER_ALPHA in alphas
    assert len(alphas) == 8


def test_the_same_prompt_has_the_same_seed_everywhere(subject: CalibrationSubject) -> None:
    _, bench = calibrated(subject.only(()))
    seeds: dict[Any, set[int]] = {}
    for job in bench.calls[3]:
        seeds.setdefault(job.prompt, set()).add(job.seed)
    assert len(seeds) == 4
    assert all(len(found) == 1 for found in seeds.values())


def test_labels_that_are_not_asked_for_are_avoided_or_not(subject: CalibrationSubject) -> None:
    for avoid, wanted in (("rest", ["b", "c"]), ("none", None)):
        _, bench = calibrated(subject.only(["CAA"]), avoid=avoid, rounds=0)
        job = next(job for job in bench.calls[-1] if job.tags["target"] == ["a"])
        assert job.spec is not None
        assert job.spec.get("avoid") == wanted


def test_what_is_never_coherent_has_no_strength(subject: CalibrationSubject) -> None:
    found, _ = calibrated(subject.only(["CAA"]), {"caa": 1e-9})
    assert found.alpha("CAA", 1) is None
    assert found.alpha("CAA", 1, rule="largest_coherent") is None


def test_what_is_always_coherent_is_marked(subject: CalibrationSubject) -> None:
    found, _ = calibrated(subject.only(["CAA"]), {"caa": 1e9})
    assert not found.cell("CAA", 1).bracketed


def test_the_judge_reads_coherent_replies_only_and_each_once(subject: CalibrationSubject) -> None:
    judge = FakeJudge()
    calibrated(subject.only(["CAA"]), judge=judge)
    assert max(float(r.text.split()[0]) for r in judge.read if r.job.spec) <= LIMITS["caa"]
    read = [(r.job.prompt, r.text) for r in judge.read]
    assert len(read) == len(set(read))


def test_replies_the_judge_gave_up_on_count_neither_way(subject: CalibrationSubject) -> None:
    found, _ = calibrated(subject.only(["CAA"]), judge=FakeJudge(unsure=0.5))
    point = found.cell("CAA", 1).at(found.alpha("CAA", 1))
    assert point is not None
    assert point.on_target == 1.0


def test_by_propensity_the_score_is_the_weakest_targets_probability(subject: CalibrationSubject) -> None:
    found, _ = calibrated(subject.only(["CAA"]), metric="propensity")
    scores = sorted({round(point.score, 4) for point in found.cell("CAA", 2).points})
    assert scores == [0.1192, 0.8808]
    without = replace(subject, reader=None)
    with pytest.raises(UsageError, match="evaluation probe"):
        calibrated(without, metric="propensity")


def test_several_layers_are_calibrated_and_the_better_one_is_chosen(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", layers=(1, 2, 4))
    subject = replace(CalibrationSubject.of_suite(suite.folder).only(["CAA"]), labels=LABELS)

    class Layered(FakeBench):
        def _reply(self, job: Any) -> Any:
            found = super()._reply(job)
            shows = job.spec is None or job.spec["layers"] == [4]
            return found if shows else replace(found, text=str(job.spec["alpha"]))

    bench = Layered(LIMITS)
    plan = CalibrationPlan.of({"sizes": (1,), "prompts": 4, "layers": (1, 4)})
    found = calibrate(subject, plan, bench, FakeJudge())
    assert {cell.layer for cell in found.cells} == {1, 4}
    assert found.layer("CAA") == 4
    assert found.cell("CAA", 1).layer == 4
    written = write_defaults(subject, found)
    assert written["caa"]["default_layers"] == (4,)
    assert Probe.load_metadata(subject.paths["caa"]).default_layers == (4,)
    with pytest.raises(UsageError, match=r"'caa' was fitted at 1, 2, 4, not at 3.*--layers 1,3"):
        subject.layers_of(subject.variants[0], (1, 3))


def test_strengths_are_written_and_read_back(subject: CalibrationSubject) -> None:
    before = Probe.load_metadata(subject.paths["mlp"]).digest
    chosen = subject.only(())
    found, _ = calibrated(chosen)
    written = write_defaults(chosen, found)
    mlp = Probe.load_metadata(subject.paths["mlp"])
    assert mlp.default_alpha == {"gradient": found.alpha("K-Steering, 8 steps", 1)}
    assert mlp.digest == before
    path = write_up(WriteUp(subject.folder / CALIBRATION, "Calibration"), found, written, model="m")
    assert Calibration.load(subject.folder) == found
    results = json.loads((path.parent / "results.json").read_text())
    assert results["provenance"]["model"] == "m"
    text = path.read_text()
    assert "K-Steering, 8 steps" in text
    for size in (1, 2):
        assert (path.parent / f"strengths-{size}.png").stat().st_size > 10_000
        assert f"strengths-{size}.png" in text


def test_a_calibration_says_what_it_lacks(subject: CalibrationSubject, tmp_path: Path) -> None:
    found, _ = calibrated(subject.only(["CAA"]), rounds=0)
    with pytest.raises(UsageError, match=r"'ACE' was not calibrated, only CAA"):
        found.alpha("ACE", 1)
    with pytest.raises(UsageError, match=r"1, 2 labels, not 3; .*--sizes 1,2,3"):
        found.alpha("CAA", 3)
    with pytest.raises(UsageError, match=r"`ksteer calibrate"):
        Calibration.load(tmp_path)
    (tmp_path / CALIBRATION).mkdir()
    (tmp_path / CALIBRATION / "results.json").write_text("{}")
    with pytest.raises(UsageError, match=r"delete it"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize(("size", "prompts", "requests"), [(1, 12, 72), (2, 12, 75), (3, 12, 80), (3, 1, 6)])
def test_every_size_costs_about_the_same(size: int, prompts: int, requests: int) -> None:
    found = targets_of([f"label {k}" for k in range(6)], size, prompts).combinations
    assert sum(len(chosen) for _, chosen in found) == requests
    used = {k for _, chosen in found for k in chosen}
    assert used == set(range(prompts))
    assert len({target for target, _ in found}) == len(found)
