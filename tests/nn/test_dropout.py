"""Dropout: the share, the scale, and one mask for both passes."""

from __future__ import annotations

import pytest
import torch

from gtkern.nn.dropout import dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_probability(probability: float) -> None:
    out = dropout(torch.ones(1000, 401), probability, True)
    assert float((out == 0).float().mean()) == pytest.approx(probability, abs=0.005)
    assert float(out.max()) == pytest.approx(1 / (1 - probability), rel=1e-3)
    assert float(out.mean()) == pytest.approx(1, abs=0.02)


def test_neighbours_are_dropped_independently() -> None:
    kept = (dropout(torch.ones(400_000), 0.5, True) != 0).double() - 0.5
    for distance in range(1, 9):
        assert abs(float((kept[:-distance] * kept[distance:]).mean())) < 0.002


def test_the_gradient_has_the_mask_of_the_output() -> None:
    x = torch.ones(33, 7, requires_grad=True)
    out = dropout(x, 0.4, True)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_the_seed_decides_the_mask() -> None:
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(dropout(torch.ones(1000), 0.5, True))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_evaluation_and_probability_0_change_nothing() -> None:
    x = torch.randn(5, 3)
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    assert dropout(torch.ones(9, dtype=dtype), 0.3, True).dtype == dtype


def test_probability_just_below_one_is_finite() -> None:
    torch.manual_seed(0)
    assert dropout(torch.ones(1 << 10), 1 - 1e-9, True).isfinite().all()
