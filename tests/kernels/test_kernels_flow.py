"""The flow oracle: by hand where a hand suffices, against fine Euler steps elsewhere, all in float64.

Euler steps of size a hop about a kink the flow slides along and overshoot one it crosses, by a distance of
order a. EULER_TOLERANCE is ten times the largest error seen on these probes (1.4e-4 of the way).
"""

import itertools

import pytest
import torch

from ksteer_kernels.flow import flow
from ksteer_kernels.reference.mlp import MLPWeights, loss_gradient, steering_loss

EULER_STEPS = 20_000
EULER_TOLERANCE = 1.5e-3
# Sums in a different order along one path, over some hundred kinks.
SAME_PATH = 1e-9
HIDDEN_SIZE = 48


def build(widths, hidden_size=HIDDEN_SIZE, num_tokens=11, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale):
        return (torch.randn(shape, generator=generator) * scale).double()

    h1, h2 = widths
    probe = MLPWeights(
        w1=normal(h1, hidden_size, scale=hidden_size**-0.5),
        b1=normal(h1, scale=0.3),
        w2=normal(h2, h1, scale=(2 / h1) ** 0.5),
        b2=normal(h2, scale=0.3),
        w3=normal(5, h2, scale=h2**-0.5),
        b3=normal(5, scale=0.3),
    )
    return probe, normal(num_tokens, hidden_size, scale=3.0), normal(5, scale=1.0)


def euler(x, probe, label_weights, budget, num_steps):
    for _ in range(num_steps):
        x = x - budget / num_steps * loss_gradient(x, probe, label_weights)
    return x


def distance(end, result, start):
    """How far apart two ends are, relative to the way the flow went, [n]."""
    return (end - result.x).norm(dim=1) / (result.x - start).norm(dim=1)


def hand_probe(w1, b1, w2, b2, w3):
    """One label; nested lists."""
    w1, b1, w2, b2, w3 = (torch.tensor(value, dtype=torch.float64) for value in (w1, b1, w2, b2, w3))
    return MLPWeights(w1, b1, w2, b2, w3[None], torch.zeros(1, dtype=torch.float64))


def points(*values):
    return torch.tensor(values, dtype=torch.float64)


ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize("widths", [(7, 5), (64, 64), (256, 128)])
@pytest.mark.parametrize("budget", [1.0, 6.0])
def test_fine_euler_steps_end_at_the_flow(widths, budget):
    probe, x, weights = build(widths)
    result = flow(x, probe, weights, budget=budget)
    assert not result.fell_back.any()
    error = distance(euler(x, probe, weights, budget, EULER_STEPS), result, x)
    print(f"kinks {result.kinks.tolist()}, slid {int(result.slid.sum())}, error at most {error.max():.1e}")
    assert result.kinks.max() > 0
    assert (error < EULER_TOLERANCE).all()


def test_euler_error_falls_as_steps_grow():
    """Tenfold steps, a tenth of the error (here: at most 0.3 of it); a hundred steps are within 5 %."""
    probe, x, weights = build((64, 64))
    result = flow(x, probe, weights, budget=6.0)
    errors = [
        float(distance(euler(x, probe, weights, 6.0, n), result, x).mean()) for n in (10, 100, 1000, 10_000)
    ]
    assert errors[1] < 0.05
    assert all(finer < 0.3 * coarser for coarser, finer in itertools.pairwise(errors))


def test_a_path_without_a_kink_is_one_euler_step():
    probe, x, weights = build((64, 64))
    result = flow(x, probe, weights, budget=1e-3)
    straight = result.kinks == 0
    assert straight.sum() > 5
    expected = x - 1e-3 * loss_gradient(x, probe, weights)
    torch.testing.assert_close(result.x[straight], expected[straight], rtol=0, atol=1e-14)


def test_one_unit_by_hand():
    """L = -1.5 relu(2 relu(3x - 3) + 1): flat below x = 1, where h1 is 0; slope -9 above."""
    probe = hand_probe([[3.0]], [-3.0], [[2.0]], [1.0], [-1.5])
    x = points([0.0], [2.0], [1.0])
    result = flow(x, probe, ONE, budget=0.5)
    torch.testing.assert_close(result.x, points([0.0], [2.0 + 0.5 * 9], [1.0]), rtol=0, atol=1e-14)
    assert result.kinks.tolist() == [0, 0, 0]
    assert not result.slid.any()


@pytest.mark.parametrize("layer", [1, 2])
def test_crossing_a_kink_by_hand(layer):
    """L = relu(x) + relu(x + 10): slope 2 above 0, 1 above -10. 3 to 0 takes 1.5, to -2.5 takes 2.5."""
    if layer == 1:
        probe = hand_probe([[1.0], [1.0]], [0.0, 10.0], [[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0], [1.0, 1.0])
    else:
        probe = hand_probe([[1.0], [1.0]], [20.0, 20.0], [[1.0, 0.0], [0.0, 1.0]], [-20.0, -10.0], [1.0, 1.0])
    result = flow(points([3.0], [3.0]), probe, ONE, budget=4.0)
    torch.testing.assert_close(result.x, points([-2.5], [-2.5]), rtol=0, atol=1e-13)
    assert result.kinks.tolist() == [1, 1]
    assert not result.slid.any()
    assert not result.fell_back.any()


VALLEY_LAYER_1 = hand_probe(
    [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
    [0.0, 10.0, 10.0],
    torch.eye(3).tolist(),
    [1.0] * 3,
    [2.0, -1.0, -1.0],
)
VALLEY_LAYER_2 = hand_probe(
    [[1.0, 0.0], [0.0, 1.0]], [20.0, 20.0],
    [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [-20.0, 0.0, 0.0], [2.0, -1.0, -1.0],
)  # fmt: skip


@pytest.mark.parametrize("probe", [VALLEY_LAYER_1, VALLEY_LAYER_2], ids=["z1", "z2"])
def test_sliding_along_a_valley_by_hand(probe):
    """L = 2 relu(x1) - x1 - x2: both sides push to x1 = 0, and along it x2 grows by 1 per time."""
    result = flow(points([2.0, 0.0], [-1.0, 0.0], [5.0, 0.0]), probe, ONE, budget=4.0)
    torch.testing.assert_close(result.x, points([0.0, 4.0], [0.0, 4.0], [1.0, 4.0]), rtol=0, atol=1e-13)
    assert result.slid.tolist() == [True, True, False]
    assert result.kinks.tolist() == [1, 1, 0]
    torch.testing.assert_close(result.sliding_time, points(2.0, 3.0, 0.0), rtol=0, atol=1e-13)
    assert not result.fell_back.any()


def test_leaving_a_valley_by_hand():
    """L = 2 relu(x1) - x1 - x2 - 2 relu(x1 + x2 - 3): past x2 = 3 the right side of the valley falls away.

    (2, 0) -> (0, 2) at t = 2 -> (0, 3) at t = 3, sliding -> by (1, 3) per time.
    """
    probe = hand_probe(
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.0, 10.0, 10.0, -3.0],
        torch.eye(4).tolist(), [1.0] * 4, [2.0, -1.0, -1.0, -2.0],
    )  # fmt: skip
    result = flow(points([2.0, 0.0]), probe, ONE, budget=4.0)
    torch.testing.assert_close(result.x, points([1.0, 6.0]), rtol=0, atol=1e-13)
    assert result.kinks.tolist() == [2]
    torch.testing.assert_close(result.sliding_time, points(1.0), rtol=0, atol=1e-13)


def test_a_valley_that_becomes_a_ridge_falls_back():
    """L = 2 relu(x1) - x1 - x2 - relu(4 relu(x1) - 2 x1 + x2 - 3): at (0, 3) both sides turn away from it.

    The path gets there at t = 5; one unit of time is left to Euler steps, to either side.
    """
    probe = hand_probe(
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 10.0, 10.0],
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [4.0, -2.0, 1.0]], [1.0, 1.0, 1.0, 7.0],
        [2.0, -1.0, -1.0, -1.0],
    )  # fmt: skip
    start = points([0.5, -2.0])
    before, after = (flow(start, probe, ONE, budget=budget) for budget in (4.999, 6.0))
    assert (before.fell_back.tolist(), after.fell_back.tolist()) == ([False], [True])
    torch.testing.assert_close(before.x, points([0.0, 2.999]), rtol=0, atol=1e-12)
    torch.testing.assert_close(after.x.abs(), points([1.0, 5.0]), rtol=0, atol=2e-3)  # 2,000 steps
    assert steering_loss(after.x, probe, ONE) < steering_loss(before.x, probe, ONE)


def test_past_max_kinks_the_rest_is_euler_steps():
    probe, x, weights = build((64, 64))
    exact = flow(x, probe, weights, budget=6.0)
    none = flow(x, probe, weights, budget=6.0, max_kinks=0, fallback_steps=37)
    assert none.fell_back.all()
    assert none.kinks.tolist() == [0] * len(x)
    torch.testing.assert_close(none.x, euler(x, probe, weights, 6.0, 37), rtol=0, atol=1e-10)
    some = flow(x, probe, weights, budget=6.0, max_kinks=20, fallback_steps=EULER_STEPS)
    assert some.fell_back.tolist() == (exact.kinks > 20).tolist()
    assert 0 < some.fell_back.sum() < len(x)
    assert (distance(some.x, exact, x) < EULER_TOLERANCE).all()


def test_the_loss_never_rises():
    probe, x, weights = build((64, 64))
    budgets = torch.linspace(0, 30, 61).tolist()
    losses = torch.stack(
        [steering_loss(flow(x, probe, weights, budget=b).x, probe, weights) for b in budgets]
    )
    assert (losses.diff(dim=0) <= 1e-12).all()
    assert (losses[1] < losses[0]).all()


def test_two_budgets_one_after_the_other_are_their_sum():
    """The second flow starts on the kinks the first one slides along, and has to find them again."""
    probe, x, weights = build((64, 64))
    halfway = flow(x, probe, weights, budget=5.0)
    assert halfway.slid.any()
    ended, whole = (
        flow(start, probe, weights, budget=budget) for start, budget in ((halfway.x, 7.0), (x, 12.0))
    )
    assert (distance(ended.x, whole, x) < SAME_PATH).all()


def test_no_budget_no_edit():
    probe, x, weights = build((64, 64))
    result = flow(x, probe, weights, budget=0.0)
    assert torch.equal(result.x, x)
    assert not result.s.any()
    assert not result.kinks.any()
    assert not result.slid.any()
    assert not result.fell_back.any()


def test_a_batch_equals_its_tokens_one_by_one():
    probe, x, weights = build((64, 64))
    batch = flow(x, probe, weights, budget=6.0)
    single = [flow(row[None], probe, weights, budget=6.0) for row in x]
    assert (distance(torch.cat([one.x for one in single]), batch, x) < SAME_PATH).all()
    assert torch.cat([one.kinks for one in single]).equal(batch.kinks)
    assert torch.cat([one.slid for one in single]).equal(batch.slid)
    assert flow(x[:0], probe, weights, budget=6.0).x.shape == (0, HIDDEN_SIZE)


def test_s_is_the_edit_and_float32_goes_in():
    probe, x, weights = build((64, 64))
    result = flow(x.float(), probe, weights, budget=6.0)
    torch.testing.assert_close(result.x, x.float().double() - result.s @ probe.w1, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": -1.0}, "budget"),
        ({"budget": float("inf")}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"budget": 1.0, "max_kinks": -1}, "max_kinks"),
        ({"budget": 1.0, "fallback_steps": 0}, "fallback_steps"),
    ],
)
def test_impossible_requests_are_refused(change, message):
    probe, x, weights = build((7, 5))
    with pytest.raises(ValueError, match=message):
        flow(x, probe, weights, **change)
    with pytest.raises(ValueError, match="x: expected finite"):
        flow(x / 0, probe, weights, budget=1.0)
