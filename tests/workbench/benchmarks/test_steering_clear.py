"""The toy environment in miniature: three attributes of four values; seconds on one core."""

import json

import pandas as pd
import pytest
import torch

from benchmarks import steering_clear
from benchmarks.toy import fits, methods
from benchmarks.toy.environment import ToyPlan, make_toy
from benchmarks.toy.experiment import K_STEERING, ONE_BY_ONE, TOGETHER, UNSTEERED, Cell, run_cell
from benchmarks.toy.fits import Plans
from benchmarks.toy.pairs import draw_pairs, labelled
from ksteer_vllm.fit.methods.loreft import LoReFTPlan
from ksteer_vllm.fit.methods.lorest import LoReSTPlan
from ksteer_vllm.fit.plans import FitPlan
from ksteer_vllm.probes.probe import Probe
from testbed.families import random_family_probe
from tests.engine.methods.steering import steered

TOY = ToyPlan(attributes=3, values=4, block=4, hidden_size=8, width=32, blocks=2, layer=0, steps=400)
PLANS = Plans(
    probe=FitPlan(width=32, epochs=20),
    loreft=LoReFTPlan(epochs=60, steps=60, patience=60, learning_rate=3e-2),
    lorest=LoReSTPlan(epochs=60, steps=40, hard_steps=20, patience=60, learning_rate=3e-2),
)
TARGETS = {2: 1, 0: 3}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the benchmark: its matrices are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy():
    return make_toy(TOY, seed=0)


@pytest.fixture(scope="module")
def rows():
    cell = Cell(
        seed=0, examples=64, sizes=(1, 2, 3), together=(2,), ranks=(2,), noises=(0.5,), toy=TOY, plans=PLANS
    )
    return pd.DataFrame(run_cell(cell))


def share(rows, method, size, measure, setting=ONE_BY_ONE):
    found = rows[(rows["method"] == method) & (rows["size"] == size) & (rows["setting"] == setting)]
    (value,) = found[measure]
    return value


def test_classifier_reads_its_inputs(toy):
    assert toy.accuracy > 0.95
    assert not any(parameter.requires_grad for parameter in toy.classifier.parameters())


def test_pairs_differ_in_the_targets_alone(toy):
    pairs = draw_pairs(toy, TARGETS, 200, torch.Generator().manual_seed(1))
    assert (pairs.wanted[:, 2] == 1).all()
    assert (pairs.wanted[:, 0] == 3).all()
    assert (pairs.values[:, 2] != 1).all()
    assert (pairs.values[:, 1] == pairs.wanted[:, 1]).all()
    assert set(pairs.values[:, 2].tolist()) == {0, 2, 3}
    x, shown = labelled(pairs, {2: 1})
    assert shown.flatten().tolist() == [0.0] * 200 + [1.0] * 200
    assert x.shape == (400, toy.plan.hidden_size)
    for stream, values in ((pairs.before, pairs.values), (pairs.after, pairs.wanted)):
        assert (toy.read(stream) == values).double().mean() > 0.95


def test_combination_is_the_engines(toy):
    """The benchmark's edits of two of three labels against specs that the plugin works out."""
    generator = torch.Generator().manual_seed(3)
    each = [draw_pairs(toy, {a: v}, 24, generator) for a, v in {**TARGETS, 1: 0}.items()]
    x, m, count = each[0].before, 0.7, 2
    directions = fits.fit_directions(each)
    first = fits.Directions(directions.difference[:count], directions.negatives_mean[:count])
    lorests = [fits.fit_lorest(toy.classifier, pairs, PLANS.lorest) for pairs in each]
    lorefts = [fits.fit_loreft(toy.classifier, pairs, PLANS.loreft) for pairs in each]
    probe = fits.fit_probe(each, {**TARGETS, 1: 0}, PLANS.probe)
    stacked = {
        "vectors": {"vectors": directions.difference},
        "ace": {"directions": directions.difference, "negatives_mean": directions.negatives_mean},
        "loreft": {
            "rotation": torch.stack([edit.rotation.weight for edit in lorefts]),
            "weight": torch.stack([edit.weight for edit in lorefts]),
            "bias": torch.stack([edit.bias for edit in lorefts]),
        },
        "lorest": {
            "basis": torch.stack([edit.basis.weight for edit in lorests]),
            "removed": torch.stack([edit.removed for edit in lorests]),
            "bias": torch.stack([edit.bias for edit in lorests]),
        },
        "mlp": {
            **vars(probe),
            "input_mean": torch.zeros(x.shape[1]),
            "input_std": torch.ones(x.shape[1]),
            "label_vectors": directions.difference,
        },
    }
    edits = {
        "vectors": methods.add_vectors(first.difference),
        "ace": methods.add_ace(first),
        "loreft": methods.add_lorefts(lorefts[:count]),
        "lorest": methods.add_lorests(lorests[:count]),
        "mlp": methods.k_steering(probe, count, K_STEERING["K-Steering, 8 steps, softmin"], x),
    }
    spec = {"target": ["a", "b"], "alpha": m * count}
    unit = methods.natural_step(probe, count, x)
    specs = {"mlp": {"target": ["a", "b"], "alpha": m * unit / 8, "num_steps": 8, "loss": "softmin"}}
    for family, tensors in stacked.items():
        fitted = random_family_probe(family, hidden_size=x.shape[1], labels=("a", "b", "c"), seed=3)
        fitted = Probe(fitted.metadata, {**fitted.tensors, **_plain(tensors)})
        expected = steered(fitted, specs.get(family, spec), x)
        actual = edits[family](x, m)
        # float32 sums against float32 sums in another order; the edits themselves are of order 1.
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)
        assert float((actual - x).norm(dim=1).mean()) > 0.05, family


def _plain(tensors):
    return {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}


def test_rows_say_what_happened(rows):
    for size in (1, 2, 3):
        assert share(rows, UNSTEERED, size, "targeted") < 0.05
        assert share(rows, "random direction", size, "all_targeted") < 0.3
    assert share(rows, UNSTEERED, 1, "others") > 0.95
    assert pd.isna(share(rows, UNSTEERED, 3, "others"))
    for method in ("LoReFT", "LoReST"):  # through the classifier: it reads what they are fitted to
        assert share(rows, method, 1, "everything") > 0.9
    for method in ("CAA", "ACE", "K-Steering, 8 steps"):
        assert share(rows, method, 1, "targeted") > 0.4, method
    assert set(rows[rows["setting"] == TOGETHER]["method"]) == {"CAA", "ACE", "LoReFT", "LoReST"}
    assert (rows["everything"] <= rows["all_targeted"]).all()
    assert len(rows) == 3 * (len(K_STEERING) + 7) + 4


def test_same_cell_same_rows(rows):
    cell = Cell(seed=0, examples=64, sizes=(1,), together=(), ranks=(2,), noises=(0.5,), toy=TOY, plans=PLANS)
    again = pd.DataFrame(run_cell(cell))
    of_one = rows[(rows["size"] == 1) & (rows["setting"] == ONE_BY_ONE)].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, of_one)


def test_result_can_be_shown_again(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steering_clear, "RESULTS", tmp_path)
    lines = rows.round(4).to_csv(index=False).splitlines()
    (tmp_path / "mini.json").write_text(json.dumps({"rows": lines}))
    steering_clear.main(
        seeds=1, examples="64", sizes="1,2,3", hidden_size=8, workers=1, name="", redraw="mini"
    )
    assert (tmp_path / "mini.png").stat().st_size > 10_000
    page = (tmp_path / "mini.md").read_text()
    for words in ("LoReST, all eight as wanted", "3 targets, 64 examples", "| unsteered |"):
        assert words in page
    assert "K-Steering, 8 steps, softmin" in capsys.readouterr().out
