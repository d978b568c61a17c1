"""One probe for several layers: what each has is what a fit at it alone gives, in the engine too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ksteer_vllm.data.positions import REPLY
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.fit import FitTask, collect_activations
from ksteer_vllm.fit.stacking import fit_at, fit_once, is_fitted, stack_layers
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES, load
from testbed.families import random_family_probe, with_metrics
from tests.support.engines import OPTIONS, generate, start_engine
from tests.workbench.fit.recorded import recorded_task

METHODS = {
    "mlp": {"epochs": 1, "width": 8},
    "linear": {},
    "caa": {},
    "ace": {},
    "orbit": {},
    "mat_steer": {"steps": 3},
}


def several(method: str) -> FitTask:
    """A task with other activations at layer 1 than at layer 2."""
    task = recorded_task(method, num_rows=120, **METHODS[method])
    found = task.recorded[REPLY]
    return replace(
        task, recorded={REPLY: replace(found, streams={1: found.streams[2].roll(1, 1), **found.streams})}
    )


@pytest.mark.parametrize("method", METHODS)
def test_each_layer_is_a_fit_of_its_own(method: str, tmp_path: Path) -> None:
    task = several(method)
    probe = Probe.load(fit_at(task, [2, 1]).save(tmp_path))
    assert probe.metadata.layers == (1, 2)
    assert probe.metadata.layer == 2
    assert set(probe.metadata.activation_scale) == {1, 2}
    assert set(probe.metadata.metrics["layers"]) == set(probe.metadata.training["layers"]) == {"1", "2"}
    program = load(FAMILIES[probe.metadata.family].program)
    for layer in (1, 2):
        alone = fit_at(replace(task, layer=layer))
        assert alone.metadata.layers == ()
        for name, tensor in alone.tensors.items():
            assert torch.equal(probe.at(layer)[name], tensor.double()), name
        slots, stacked = program(alone).slots(), program(probe).slots()
        for name, slot in slots.items():
            assert torch.equal(stacked[f"{name}@{layer}"].basis, slot.basis)


def test_a_fit_that_has_been_done_is_not_done_again(tmp_path: Path) -> None:
    task = several("caa")
    fit_once(task, tmp_path, [1, 2])
    before = (tmp_path / "probe.json").stat().st_mtime_ns
    steered = Probe.load(tmp_path).with_metadata(default_alpha={"add": 3.0})
    steered.save(tmp_path)
    assert is_fitted(task, tmp_path, [1, 2])
    fit_once(task, tmp_path, [2, 1])
    assert Probe.load(tmp_path).metadata.default_alpha == {"add": 3.0}
    assert before <= (tmp_path / "probe.json").stat().st_mtime_ns
    for other in (replace(task, options={"seed": 1}), replace(task, rows=task.rows[::-1])):
        assert not is_fitted(other, tmp_path, [1, 2])
    assert not is_fitted(task, tmp_path, [2])
    assert not is_fitted(task, tmp_path / "none")


def test_the_engine_steers_each_layer_with_its_own_tensors(
    llama: Path, rows: list[LabelledRow], tmp_path: Path
) -> None:
    """The same log-probabilities, to float32 rounding, as the probe that was fitted there alone."""
    recorded = {REPLY: collect_activations(str(llama), rows, [1, 2], engine_options=OPTIONS)}
    task = FitTask.of(
        str(llama),
        rows,
        "mlp",
        layer=2,
        options={"epochs": 2, "width": 16},
        engine_options=OPTIONS,
        recorded=recorded,
    )
    paths = {
        "stacked": fit_at(task, [1, 2]).save(tmp_path / "stacked"),
        "one": fit_at(task, [1]).save(tmp_path / "one"),
        "two": fit_at(task).save(tmp_path / "two"),
    }
    llm = start_engine(llama, paths)
    edit = {"target": ["warm"], "avoid": ["dry"], "alpha": 2.0, "unit": "normalised"}
    both = [{**edit, "probe": "one"}, {**edit, "probe": "two"}]
    specs = [
        {**edit, "probe": "stacked", "layers": [1]},
        {**edit, "probe": "one"},
        {**edit, "probe": "stacked", "layers": [2]},
        {**edit, "probe": "two"},
        {**edit, "probe": "stacked"},
        {"stack": both},
        None,
    ]
    outputs = generate(llm, [[5, 6, 7, 8]] * len(specs), specs, max_tokens=4)
    found = [[next(iter(step.values())).logprob for step in output.outputs[0].logprobs] for output in outputs]
    for mine, alone in ((0, 1), (2, 3), (4, 5)):
        assert found[mine] == pytest.approx(found[alone], abs=1e-4)
    for other in (0, 2, 4):
        assert found[other] != pytest.approx(found[6], abs=1e-3)


def test_statistics_of_metrics_are_by_layer() -> None:
    one, two = (
        with_metrics(random_family_probe("linear", layer=layer, seed=layer)).with_metadata(
            metric_scale={"variance": {layer: float(layer)}}
        )
        for layer in (1, 2)
    )
    both = stack_layers([one, two], 2)
    assert both.metadata.metric_scale == {"variance": {1: 1.0, 2: 2.0}}
    assert both.metadata.metric_layers == {"variance": (1, 2), "covariance": (1, 2)}
    assert torch.equal(both.at(1)["covariance_up"], one.at(1)["covariance_up"])
    without = stack_layers([one, random_family_probe("linear", layer=2)], 1)
    assert without.metadata.metric_layers == {"variance": (1, 2)}, "where one layer has no covariance"
