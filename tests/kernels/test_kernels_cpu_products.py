"""The CPU path's products with fixed weights, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ksteer_kernels.packed import WHOLE_UP_TO_ROWS, Linear, pieces


@given(st.integers(0, 100_000))
def test_rows_are_put_together_from_few_sizes(num_rows: int) -> None:
    sizes = pieces(num_rows)
    assert sum(sizes) == num_rows
    assert len(sizes) <= num_rows.bit_length()
    assert all(size <= WHOLE_UP_TO_ROWS or size & (size - 1) == 0 for size in sizes)


@pytest.mark.parametrize("num_rows", [0, 1, 15, 16, 32, 33, 48, 63, 64, 65, 100, 129, 257, 1000])
def test_every_product_is_right(num_rows: int) -> None:
    """float32 against float64: 1e-5 of the largest entry is a few roundings of sums of 48 terms."""
    generator = torch.Generator().manual_seed(num_rows)
    weight, x = (torch.randn(n, 48, generator=generator) for n in (40, num_rows))
    bias, z = torch.randn(40, generator=generator), torch.randn(num_rows, 40, generator=generator)
    exact = x.double() @ weight.double().T
    linear = Linear(weight)
    subtracted = z.clone()
    linear.subtract_from_(subtracted, x)
    for found, wanted in (
        (linear(x), exact),
        (linear(x, bias), exact + bias),
        (linear.relu(x, bias), (exact + bias).clamp_min(0)),
        (linear.subtract_from(z, x), z - exact),
        (subtracted, z - exact),
    ):
        assert found.shape == (num_rows, 40)
        if num_rows:
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
