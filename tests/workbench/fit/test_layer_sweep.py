"""The layer sweep: its rule on known tables, and the command on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ksteer_vllm import UsageError
from ksteer_vllm.bench.chance import INTERVAL
from ksteer_vllm.bench.suite import EVALUATION
from ksteer_vllm.data.dataset import TaskDataset
from ksteer_vllm.data.rows import write_rows
from ksteer_vllm.experiments.layers import sweep
from ksteer_vllm.experiments.layers.plan import LayerPlan
from ksteer_vllm.experiments.layers.sweep import CAA, K_STEERING, recommended, sweep_layers
from ksteer_vllm.experiments.layers.writeup import layer_table, write_up
from ksteer_vllm.fit.activations import Recorder
from ksteer_vllm.probes.probe import Probe
from testbed.families import random_family_probe
from tests.support.engines import OPTIONS
from tests.workbench.fit.conftest import LABELS, make_rows

ENGINE = {
    **{name: value for name, value in OPTIONS.items() if name != "disable_log_stats"},
    "enable_chunked_prefill": False,
}
PLAN = LayerPlan(
    layers=(0, 2), strengths=(0.5, 1.0), prompts=2, options={"epochs": 2, "width": 16}, max_tokens=6
)

ANY_JUDGE = PLAN.model_copy(update={"allow_chance_judge": True})
"""So little data and so small a model make no judge; where nothing depends on it, it may judge."""


def table(shares: dict[int, tuple[float, float]], replies: int = 100) -> pd.DataFrame:
    """Shares on target of K-Steering at two strengths, by layer; CAA would say otherwise."""
    return pd.DataFrame(
        [
            {"method": method, "layer": layer, "strength": strength, "on_target": share, "replies": replies}
            for layer, found in shares.items()
            for strength, own in zip((0.5, 1.0), found, strict=True)
            for method, share in ((K_STEERING, own), (CAA, 1 - own))
        ]
    )


@pytest.mark.parametrize(
    ("shares", "layer"),
    [
        ({2: (0.1, 0.3), 6: (0.5, 0.4), 9: (0.9, 0.1)}, 9),
        ({2: (0.90, 0.3), 6: (0.5, 0.88), 9: (0.9, 0.1)}, 6),  # 0.88 is within sqrt(0.9 x 0.1 / 100) = 0.03
        ({2: (0.90, 0.3), 6: (0.5, 0.86), 9: (0.9, 0.1)}, 9),  # 0.86 is not; 9 is 3 from 6, 2 is 4
        ({5: (1.0, 1.0), 7: (1.0, 0.9)}, 5),
    ],
)
def test_the_rule(shares: dict[int, tuple[float, float]], layer: int) -> None:
    """Of ten layers; 60 % of the depth is layer 6."""
    assert recommended(table(shares), 10) == layer


def test_every_layer_is_read_and_steered_in_one_batch(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = TaskDataset.of("words", make_rows(240))
    found = sweep_layers(str(llama), dataset, tmp_path, ANY_JUDGE, engine_options=ENGINE)
    assert found.by_depth == 2
    assert found.layer in (0, 2)
    assert found.judge == "probe"
    reading = found.reading.set_index(["layer", "method"])["auroc"]
    assert set(reading.index) == {(layer, name) for layer in (0, 2) for name in ("mlp", "linear", "caa")}
    assert (reading > 0.7).all()
    assert len(found.steering) == 2 * 2 * 2
    assert (found.steering["replies"] == 2 * 2).all()
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert len(lines) == 1 + 100 + 2 * 2 * 2 * 2 * 2  # identity, unsteered, every cell's label and prompt
    assert Probe.load(tmp_path / "probes" / "mlp").metadata.layers == (0, 2)
    assert not (tmp_path / "activations").exists()
    report = write_up(found, PLAN, tmp_path, model=str(llama))
    assert "Recommended: **layer" in report.read_text()
    assert json.loads((tmp_path / "results.json").read_text())["recommended"] == found.layer
    assert (tmp_path / "layers.png").stat().st_size > 5000
    assert layer_table(found).row_count == 2
    monkeypatch.setattr(Recorder, "_engine", None)
    monkeypatch.setattr("ksteer_vllm.bench.batch.run_batch", _nothing_to_run)
    again = sweep_layers(str(llama), dataset, tmp_path, ANY_JUDGE, engine_options=ENGINE)
    pd.testing.assert_frame_equal(again.steering, found.steering)


def _nothing_to_run(llm: Any, pending: dict[str, Any], *_: Any) -> tuple[()]:
    assert not pending
    return ()


def test_layers_and_judges_that_are_not_there(llama: Path, tmp_path: Path) -> None:
    dataset = TaskDataset.of("words", make_rows(240))
    with pytest.raises(UsageError, match="layers: the model has no layer 9; its layers are 0 to 3"):
        sweep_layers(str(llama), dataset, tmp_path, LayerPlan(layers=(9,)))
    with pytest.raises(UsageError, match="judge: 'reader' reads the demo's tones only"):
        sweep_layers(str(llama), dataset, tmp_path, LayerPlan(judge="reader"))
    with pytest.raises(UsageError, match=r"judge: 'openai' cannot judge a layer sweep; known: reader, probe"):
        sweep_layers(str(llama), dataset, tmp_path, LayerPlan(judge="openai"))


def test_a_judge_at_chance_is_refused_unless_allowed(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _Started(Exception):
        pass

    def start(*_: Any, **__: Any) -> None:
        raise _Started

    read = {"balanced_accuracy": 0.5, INTERVAL: [0.4, 0.6]}
    metrics = {"replies": {"labels": {LABELS[0]: read}}}
    reader = random_family_probe("mlp", labels=LABELS, metrics=metrics).save(tmp_path / "reader")
    fitted = {EVALUATION: reader, "mlp": tmp_path, "caa": tmp_path}
    monkeypatch.setattr(sweep, "_fit_all", lambda *_: dict(fitted))
    monkeypatch.setattr(sweep, "Bench", start)
    dataset = TaskDataset.of("words", make_rows(240))
    says = rf"judge: the evaluation probe does not tell {LABELS[0]} 0.50 .*--allow-chance-judge"
    with pytest.raises(UsageError, match=says):
        sweep_layers(str(llama), dataset, tmp_path, PLAN)
    with pytest.raises(_Started):
        sweep_layers(str(llama), dataset, tmp_path, ANY_JUDGE)


def test_the_command_refuses_strengths_that_are_none(llama: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ksteer_vllm.cli import app

    data = write_rows(tmp_path / "data.jsonl", make_rows(30))
    command = ["layers", str(llama), str(data), "--out", str(tmp_path), "--strengths", "1,-2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert result.output.startswith("ksteer: --strengths: expected numbers above 0")
