"""The statistics of the metrics, against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from sklearn.covariance import OAS
from torch import Tensor

from ksteer_vllm.fit import metric
from ksteer_vllm.fit.metric import MetricStatistics, metric_statistics, shrinkage
from ksteer_vllm.fit.statistics import standardisation
from ksteer_vllm.spec.families import COVARIANCE_UP

N, D, H, ROWS = 400, 9, 5, 80


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    units = torch.logspace(-2, 3, D)
    mixed = torch.randn(N, D, generator=generator) @ torch.randn(D, D, generator=generator)
    return 5 + mixed * units


def statistics(x: Tensor, rows: int = ROWS) -> MetricStatistics:
    return metric_statistics(x, *standardisation(x), rows)


def covariance(found: MetricStatistics) -> Tensor:
    assert found.correlations is not None
    std = found.std.double()
    return std[:, None] * found.correlations * std


def test_the_covariance_is_shrunk_towards_its_diagonal(x: Tensor) -> None:
    found, share = statistics(x), 0.0
    plain = torch.cov(x.double().T, correction=0)
    share = found.training["covariance"]["shrinkage"]
    assert 0 < share < 1
    wanted = (1 - share) * plain + share * plain.diag().diag()
    torch.testing.assert_close(covariance(found), wanted, rtol=1e-5, atol=0)  # std is kept in float32


def test_the_shrinkage_is_scikit_learns(x: Tensor) -> None:
    mean, std = standardisation(x)
    z = ((x - mean) / std).double().numpy()
    correlations = torch.corrcoef(x.double().T)
    assert shrinkage(correlations, N) == pytest.approx(OAS().fit(z).shrinkage_, rel=1e-5)
    assert shrinkage(torch.eye(4, dtype=torch.float64), 100) == 1.0


def test_lengths_are_means_of_the_metrics_own(x: Tensor) -> None:
    found = statistics(x)
    centred = x.double() - x.double().mean(0)
    for name, m in (("variance", found.std.double().square().diag()), ("covariance", covariance(found))):
        lengths = (centred @ torch.linalg.inv(m) * centred).sum(1).sqrt()
        assert found.scale[name] == pytest.approx(lengths.mean().item(), rel=1e-5), name


def test_up_is_the_raw_weight_times_the_covariance(x: Tensor) -> None:
    found = statistics(x)
    weight = torch.randn(H, D, generator=torch.Generator().manual_seed(1))
    raw = weight.double() / found.std.double()
    up = found.tensors(weight)[COVARIANCE_UP]
    torch.testing.assert_close(up.double(), raw @ covariance(found), rtol=1e-5, atol=1e-5)


def test_units_do_not_matter(x: Tensor) -> None:
    """Of a linear probe w.x the edit is Sigma w: with x in other units, the same edit in those units."""
    units = torch.logspace(2, -2, D)
    here, there = statistics(x), statistics(x * units)
    weight = torch.randn(H, D, generator=torch.Generator().manual_seed(1))  # on z: the same in any units
    up, other = (found.tensors(weight)[COVARIANCE_UP] for found in (here, there))
    torch.testing.assert_close(other, up * units, rtol=1e-4, atol=1e-6)
    assert there.scale == pytest.approx(here.scale, rel=1e-4)


def test_the_edit_of_a_linear_classifier_is_the_mean_difference() -> None:
    """Two Gaussian classes with one covariance: Sigma times the best direction Sigma^-1 d is d, shrunk a
    little; times the variances it is d only where coordinates are uncorrelated."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(D, D, generator=generator) / 3 + torch.eye(D)
    difference = torch.randn(D, generator=generator)
    labels = torch.arange(20_000) % 2
    x = torch.randn(20_000, D, generator=generator) @ root.T + labels[:, None] * difference
    mean, std = standardisation(x)
    found = metric_statistics(x, mean, std, 20_000)
    raw = torch.linalg.solve((root @ root.T).double(), difference.double())
    weight = (raw * std).float()[None]
    up = found.tensors(weight)[COVARIANCE_UP]
    along = torch.cosine_similarity(up[0], difference, dim=0)
    scaled = torch.cosine_similarity((raw * std.double().square()).float(), difference, dim=0)
    assert along > 0.995
    assert scaled < 0.97


def test_a_large_hidden_size_and_a_constant_coordinate(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    x[:, 3] = 2.0
    found = statistics(x)
    assert found.correlations is not None
    assert torch.isfinite(found.correlations).all()
    assert set(found.scale) == {"variance", "covariance"}
    monkeypatch.setattr(metric, "LARGEST_COVARIANCE", D - 1)
    found = statistics(x)
    assert (found.correlations, set(found.scale)) == (None, {"variance"})
    assert found.training["covariance"] == "left out: hidden size 9 is above 8"
    assert found.tensors(torch.ones(1, D)) == {}
