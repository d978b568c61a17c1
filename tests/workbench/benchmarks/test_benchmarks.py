"""The benchmarks' arithmetic, their inputs and their pages; nothing here is timed."""

import json

import pytest
import torch

from benchmarks import kernel_checks, kernel_setup, run_all, steered_cost
from benchmarks.harness import SHAPES
from benchmarks.host_sections import Section
from benchmarks.random_probes import LABELS, edit_of, random_family_probe
from benchmarks.record import Table, bootstrap_interval, paired_ratios, percentile, slug, spread, summary
from ksteer_vllm import SteeringSpec
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES, load

EVERY_METHOD = [(family, method) for family, about in FAMILIES.items() for method in about.methods]


def test_quantiles():
    assert summary([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == {"p20": 2.0, "p50": 3.5, "p80": 5.0}
    assert summary([7.0]) == {"p20": 7.0, "p50": 7.0, "p80": 7.0}
    assert percentile([0.0, 1.0, 2.0, 3.0, 4.0], 50) == 2.0
    assert spread({"p20": 1.0, "p50": 2.0, "p80": 3.0}, 1) == "2.0 (1.0 to 3.0)"


def test_ratios_are_taken_within_a_round():
    # The second round was ten times slower for both cases: a ratio of medians would show it.
    assert paired_ratios([2.0, 20.0], [1.0, 10.0]) == {"p20": 2.0, "p50": 2.0, "p80": 2.0}
    assert paired_ratios([2.0, 20.0], [1.0, 10.0], inverse=True)["p50"] == 0.5


def test_bootstrap_interval_holds_the_median():
    values = [float(value) for value in range(21)]
    low, high = bootstrap_interval(values)
    assert 0 < low < 10 < high < 20
    assert bootstrap_interval([3.0] * 5) == (3.0, 3.0)


@pytest.mark.parametrize(("family", "method"), EVERY_METHOD)
def test_every_method_has_a_probe_and_a_spec(family, method, tmp_path):
    probe = Probe.load(random_family_probe(family, "tiny").save(tmp_path / family))
    spec = SteeringSpec.parse(edit_of(family, method))
    (edit,) = spec.edits()
    takes = FAMILIES[family].methods[method].takes
    edit.check_method(method, takes)
    row = load(FAMILIES[family].program)(probe).row_at(edit.canonical(takes), probe.metadata.layer)
    assert row.settings.strength != 0


def test_subspaces_are_orthonormal():
    rotation = random_family_probe("loreft", "tiny").tensors["rotation"]
    eye = torch.eye(rotation.shape[1]).expand(len(LABELS), -1, -1)
    torch.testing.assert_close(rotation @ rotation.mT, eye, atol=1e-5, rtol=0)  # float32 QR


def test_a_batch_holds_as_many_distinct_specs_as_asked_for():
    assert steered_cost.parse_cases("8x1,8x16,8x256", 32) == {
        "8 steps, 1 spec": (8, 1), "8 steps, 16 specs": (8, 16), "8 steps, 32 specs": (8, 32)
    }  # fmt: skip
    specs = steered_cost.specs_of(8, 16, 32, None)
    assert len({json.dumps(spec) for spec in specs}) == 16


def test_kernel_batch_passes_its_own_checks_and_a_wrong_edit_does_not():
    batch = kernel_setup.make_batch(20, 4, 64, 16, 3, torch.bfloat16, "cpu")
    assert set(kernel_checks.check_kernels(batch, "naive")) == {"token_rows", "shrink", "hidden", "expand"}
    kernel_checks.check_edit(batch, lambda copy: kernel_setup.steer_planned(copy)())
    with pytest.raises(RuntimeError, match="nothing is timed"):
        kernel_checks.check_edit(batch, lambda copy: None)


def test_a_section_times_calls_until_it_is_undone():
    section = Section("median", "statistics:median", "request")
    import statistics

    original = statistics.median
    assert section.install()
    assert statistics.median([1, 2, 3]) == 2
    section.undo()
    assert statistics.median is original
    assert len(section.nanoseconds) == 1
    assert not Section("gone", "statistics:no_such_name", "request").install()


def test_pages_are_grouped_by_machine(tmp_path):
    table = Table("a title", ("case", "ratio"), [("1 step | 1", "0.9")])
    assert table.markdown().splitlines()[-1] == "| 1 step \\| 1 | 0.9 |"
    for device, name, shape in (("CPU, 2 cores", "idle_cost", "135m"), ("GPU", "idle_cost-8b", "tiny")):
        result = {
            "device": device, "shape": shape, "command": "python", "time": "2026-01-01T00:00", "versions": {},
            "load_at_start": 0.1, "tables": [vars(table)],
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "older.json").write_text(json.dumps({"device": "CPU, 2 cores"}))
    (page,) = run_all.write_pages(tmp_path)
    assert page.name == f"{slug('CPU, 2 cores')}.md" == "cpu-2-cores.md"
    assert "**a title**" in page.read_text()


def test_plans_name_scripts_and_shapes_that_exist():
    for command in (command for plan in run_all.PLANS.values() for command in plan):
        name, *arguments = command.split()
        assert (run_all.RESULTS.parent / f"{name}.py").exists()
        if "--shape" in arguments:
            assert arguments[arguments.index("--shape") + 1] in SHAPES
