"""Streams in blocks and pieces give what the whole tensor gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ksteer_vllm.errors import DataError
from ksteer_vllm.fit import FitPlan, statistics, stream, train
from ksteer_vllm.fit.logistic import logistic_regression
from ksteer_vllm.fit.stream import Stream

D = 6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK_BYTES", 4 * D * 7)


def pieces(x: Tensor) -> Stream:
    return Stream(tuple(x.split([13, 1, 40, len(x) - 54])))


def numbers(count: int = 100) -> Tensor:
    return 3 + torch.randn(count, D, generator=torch.Generator().manual_seed(0))


def test_pieces_are_read_as_one() -> None:
    x = numbers()
    whole = pieces(x)
    assert len(whole) == 100
    assert [where.stop - where.start for where, _ in whole.blocks()] == [7] * 14 + [2]
    assert torch.equal(torch.cat([block for _, block in whole.blocks()]), x)
    assert torch.equal(whole.tensor(), x)
    chosen = torch.tensor([99, 0, 13, 12, 14, 14, 54, 53])
    assert torch.equal(whole.take(chosen), x[chosen])
    keep = torch.arange(100) % 3 == 0
    part = whole.select(keep).select(torch.arange(34) > 4)
    assert torch.equal(part.tensor(), x[keep][5:])
    mean, std = torch.arange(D).float(), torch.full((D,), 2.0)
    assert torch.equal(part.standardised(mean, std).map(lambda block: block * 2), (x[keep][5:] - mean))


@pytest.mark.parametrize(
    "statistic",
    [
        lambda x, shown: statistics.mean_of(x),
        lambda x, shown: torch.tensor(statistics.activation_scale(x)),
        lambda x, shown: torch.stack(statistics.standardisation(x)),
        lambda x, shown: statistics.covariance(x),
        lambda x, shown: torch.stack(statistics.label_means(x, shown)),
        statistics.label_vectors,
    ],
)
def test_statistics_need_only_blocks(
    statistic: Callable[[Tensor | Stream, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order: float64 rounding, then at most one unit of float32 (relative 1.2e-7)."""
    x, shown = numbers(), (torch.arange(200) % 3 == 0).float().reshape(100, 2)
    in_blocks = statistic(pieces(x), shown)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1 << 20)
    torch.testing.assert_close(in_blocks, statistic(x, shown), rtol=2e-7, atol=1e-7)


def test_the_regression_is_scikit_learns() -> None:
    """Both stop at a gradient per vector of 1e-4 or less, so the minimum is met to about 1e-3."""
    x = numbers(400) - 3
    generator = torch.Generator().manual_seed(1)
    shown = torch.stack([x @ torch.randn(D, generator=generator) > 0.3, x[:, 0] + x[:, 1] > 0], 1)
    shown ^= torch.rand(shown.shape, generator=generator) < 0.1
    weight, bias, iterations = logistic_regression(pieces(x), shown, l2=2.0, max_iter=200)
    assert 1 < iterations < 200
    for k in range(2):
        theirs = LogisticRegression(C=0.5, tol=1e-6).fit(x.numpy(), shown[:, k].numpy())
        torch.testing.assert_close(weight[k], torch.from_numpy(theirs.coef_[0]).float(), rtol=1e-3, atol=1e-3)
        assert bias[k].item() == pytest.approx(theirs.intercept_[0], abs=1e-3)
    with pytest.raises(DataError, match="with and without every label"):
        logistic_regression(x, torch.ones(400, 1, dtype=torch.bool), l2=1.0, max_iter=5)


def test_training_in_pools_sees_every_vector_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "POOL_BYTES", 4 * D * 32)
    x = numbers()
    batches = train._Batches(pieces(x), torch.arange(100.0)[:, None], 10, torch.Generator().manual_seed(0))
    seen = [torch.cat([wanted for _, wanted in batches])[:, 0] for _ in range(2)]
    for order in seen:
        assert order.sort().values.tolist() == list(range(100))
    assert not torch.equal(seen[0], seen[1])
    assert {len(set((order // 32).long().tolist()[:32])) for order in seen} <= {1, 2}
    for batch, wanted in batches:
        assert torch.equal(batch, x[wanted[:, 0].long()])


def test_training_in_pools_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "POOL_BYTES", 4 * D * 32)
    x = numbers(300) - 3
    targets = (x[:, :2] > 0).float()
    plan = FitPlan(width=16, epochs=30, learning_rate=1e-2)
    found = train.train_network(pieces(x), targets, x[:50], targets[:50], plan)
    assert found.loss < 0.2
