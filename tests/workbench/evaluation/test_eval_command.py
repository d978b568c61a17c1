"""`ksteer eval`: strengths from the calibration, and the errors a user can act on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ksteer_vllm.bench.judges import JUDGES, Verdict
from ksteer_vllm.bench.suite import Suite
from ksteer_vllm.bench.variants import STANDARD, variants_of
from ksteer_vllm.cli import app
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.evaluation.command import run_evaluation
from ksteer_vllm.experiments.evaluation.plan import EvaluationPlan
from ksteer_vllm.experiments.evaluation.strengths import calibrated_settings, chosen_variants, planned
from ksteer_vllm.experiments.evaluation.writeup import size_table
from testbed.families import random_family_probe
from tests.workbench.evaluation.calibrations import calibration_of, digests_of, write_calibration

VARIANTS = {variant.name: variant for variant in STANDARD}
STRENGTHS = {"K-Steering, 8 steps": 2.0, "CAA": 1.0, "ACE": None, "random direction": 9.0}
PLAN = EvaluationPlan(sizes=(1, 2))


def _settings(plan: EvaluationPlan = PLAN, **more: Any) -> tuple[dict[str, dict[int, float]], list[str]]:
    calibration = calibration_of(STANDARD, STRENGTHS, **more)
    named = [VARIANTS[name] for name in [*STRENGTHS, "LoReFT"]]
    found, without = calibrated_settings(named, calibration, planned(plan, calibration))
    return {setting.name: dict(setting.alpha) for setting in found}, without


def test_strengths_are_the_calibrated_ones_and_the_random_control_has_those_of_caa() -> None:
    alphas, without = _settings()
    assert alphas == {
        "K-Steering, 8 steps": {1: 2.0, 2: 2.0},
        "CAA": {1: 1.0, 2: 1.0},
        "random direction": {1: 1.0, 2: 1.0},
    }
    assert without == ["ACE (no strength within the budget at size 1, 2)", "LoReFT (not calibrated)"]
    alphas, _ = _settings(PLAN.model_copy(update={"strength": "largest_coherent"}))
    assert alphas["CAA"] == {1: 2.0, 2: 2.0}


def test_sizes_and_avoid_are_those_of_the_calibration() -> None:
    with pytest.raises(UsageError, match=r"2 was not calibrated, only 1; .*with --sizes 1,2"):
        _settings(sizes=(1,))
    with pytest.raises(UsageError, match=r"calibrated with 'none'; .*`ksteer calibrate` with --avoid rest"):
        _settings(EvaluationPlan(sizes=(1, 2), avoid="rest"), avoid="none")


def test_what_the_plan_leaves_open_is_as_calibrated_and_another_sampling_is_refused() -> None:
    calibration = calibration_of(STANDARD, STRENGTHS, sizes=(1,), avoid="none", max_tokens=7)
    plan = planned(EvaluationPlan(prompts=3), calibration)
    assert (plan.sizes, plan.avoid, plan.max_tokens, plan.prompts) == ((1,), "none", 7, 3)
    assert planned(EvaluationPlan(max_tokens=7), calibration).max_tokens == 7
    with pytest.raises(UsageError, match=r"max_tokens: 96, .* with 7; .* with --max-tokens 96"):
        planned(EvaluationPlan(max_tokens=96), calibration)
    with pytest.raises(UsageError, match=r"temperature: 0.5, .* with --temperature 0.5"):
        planned(EvaluationPlan(temperature=0.5), calibration)


def test_variants_are_chosen_by_their_name_or_their_probes() -> None:
    named = list(VARIANTS.values())
    assert [v.name for v in chosen_variants(named, ["CAA", "mlp"])] == [
        "K-Steering, 1 step",
        "K-Steering, 8 steps",
        "K-Steering, 8 steps, softmin",
        "K-Steering, 8 steps, variance",
        "K-Steering, 8 steps, covariance",
        "CAA",
    ]
    assert chosen_variants(named, []) == named
    with pytest.raises(UsageError, match="unknown 'nope'; there are: K-Steering, 1 step"):
        chosen_variants(named, ["nope"])


def test_evaluates_a_calibrated_suite(suite: Suite, tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    shutil.copytree(suite.folder, folder)
    strengths = {"K-Steering, 8 steps": 2.0, "CAA": 1.0}
    digests = digests_of(suite.paths)
    write_calibration(
        folder, calibration_of(variants_of(suite.paths), strengths, sizes=(1,), digests=digests)
    )
    arguments = ["eval", str(folder), "--prompts", "1", "--steps", "8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for words in ("each variant at its own calibrated strength", "1 label, own strength", "Highest: "):
        assert words in result.output
    found = json.loads((folder / "results" / "results.json").read_text())
    names = {row["variant"] for row in found["by_size"]}
    assert names == {"unsteered", "K-Steering, 8 steps", "CAA", "random direction"}
    assert found["provenance"]["plan"]["sizes"] == [1], "as calibrated"
    assert found["provenance"]["plan"]["max_tokens"] == 4
    assert "ActAdd (not calibrated)" in found["left_out"]
    assert "ACE (not calibrated)" in (folder / "results" / "results.md").read_text()


def test_strengths_of_other_probes_are_refused(suite: Suite, tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    shutil.copytree(suite.folder, folder)
    calibration = calibration_of(variants_of(suite.paths), {"CAA": 1.0}, digests=digests_of(suite.paths))
    write_calibration(folder, calibration)
    random_family_probe("vectors", seed=9).save(folder / "caa")
    result = CliRunner().invoke(app, ["eval", str(folder)])
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert "caa" in message
    assert "ksteer calibrate" in message
    assert "actadd" not in message


def test_sizes_there_are_not_labels_for_are_not_sent_to_a_calibration(suite: Suite, tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    shutil.copytree(suite.folder, folder)
    digests = digests_of(suite.paths)
    write_calibration(folder, calibration_of(variants_of(suite.paths), {"CAA": 1.0}, digests=digests))
    result = CliRunner().invoke(app, ["eval", str(folder), "--sizes", "4"])
    assert result.exit_code == 2
    assert "sizes: 4 of 3 labels; allowed: 1 to 3" in " ".join(result.output.split())


def test_sizes_without_single_labels_and_methods_without_steps(suite: Suite, tmp_path: Path) -> None:
    """Nothing is said of steerability, steps and projections; a suite need not have a probe that reads."""
    folder = tmp_path / "suite"
    shutil.copytree(suite.folder, folder, ignore=shutil.ignore_patterns("evaluation", "calibration"))
    asked = {label: (f"w{k} w9", f"w{k} w8") for k, label in enumerate(suite.file.labels)}
    file = suite.file.model_copy(update={"judge": "stub", "instructions": asked})
    Suite(folder, file).write()
    digests = digests_of(suite.paths)
    write_calibration(
        folder, calibration_of(variants_of(suite.paths), {"CAA": 1.0}, sizes=(2,), digests=digests)
    )
    plan = EvaluationPlan(sizes=(2,), prompts=1)
    JUDGES["stub"] = "tests.workbench.evaluation.test_eval_command:Stub"
    try:
        found = run_evaluation(folder, plan, Console(quiet=True))
    finally:
        del JUDGES["stub"]
    assert found.steps is found.points is None
    text = (folder / "results" / "results.md").read_text()
    assert "## Side effects" in text
    assert "## Steerability" not in text
    rows = size_table(found).set_index("variant")
    assert list(rows.index)[:3] == ["unsteered", "prompted", "prompted + CAA"]
    tokens = rows["prompt_tokens"]
    assert tokens["prompted"] == tokens["prompted + CAA"] == tokens["unsteered"] + 4
    assert tokens["CAA"] == tokens["unsteered"]
    assert set(rows["replies"]) == {3}, "every pair of three labels, one prompt"
    assert rows["nll"].notna().all()


class Stub:
    name = "stub"

    def __init__(self, labels: Any) -> None:
        self.labels = frozenset(labels)

    def judge(self, replies: Any) -> list[Verdict]:
        return [Verdict(self.labels) for _ in replies]


def test_what_is_missing_is_said_in_one_line(suite: Suite, tmp_path: Path) -> None:
    for folder, says in (
        (tmp_path, "a suite is what `ksteer fit --method all` writes"),
        (suite.folder, f"calibrate with `ksteer calibrate {suite.folder}` first"),
    ):
        result = CliRunner().invoke(app, ["eval", str(folder)])
        assert result.exit_code == 2
        assert says in " ".join(result.output.split())
    for option, value, says in (("--strength", "strongest", "--strength: "), ("--sizes", "a", "--sizes: ")):
        result = CliRunner().invoke(app, ["eval", str(suite.folder), option, value])
        assert result.exit_code == 2
        assert f"ksteer: {says}" in result.output
