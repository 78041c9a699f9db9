"""Dropout: the share, the scale, and one mask for both passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gtkern.nn import dropout, dropout_add, relu_dropout
from gtkern.random import philox


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


def keep_mask(count: int, seed: int, probability: float) -> Tensor:
    """Which of `count` elements stay, from the words that csrc/common/dropout says it draws."""
    at = torch.arange(count)
    group, word, half, lane = at // 128, at % 128 // 32, at % 32 // 16, at % 16
    words = philox(seed, (group * 16 + lane, 0, 0, 0))[at, word]
    return (words >> (16 * half)) % 2**16 >= round(probability * 2**16)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 20_000])
def test_the_mask_is_that_of_the_counters(count: int) -> None:
    torch.manual_seed(count)
    seed = int(torch.randint(2**63 - 1, ()))
    torch.manual_seed(count)
    kept = dropout(torch.ones(count), 0.3, True) != 0
    assert torch.equal(kept, keep_mask(count, seed, 0.3))


def both(fused: Callable[[], Tensor], plain: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What both give from the same state of torch's generator."""
    torch.manual_seed(5)
    first = fused()
    torch.manual_seed(5)
    return first, plain()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [3, 1000])
def test_fused_with_residual_or_relu_is_the_same(dtype: torch.dtype, count: int) -> None:
    x, residual = torch.randn(2, count, 7, dtype=dtype)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0}
    added, plain = both(
        lambda: dropout_add(x, residual, 0.4, True), lambda: residual + dropout(x, 0.4, True)
    )
    torch.testing.assert_close(added, plain, rtol=tolerance["rtol"], atol=tolerance["rtol"])
    cut, plain = both(lambda: relu_dropout(x, 0.4, True), lambda: dropout(x.relu(), 0.4, True))
    torch.testing.assert_close(cut, plain, **tolerance)


def test_gradients_of_the_fused_ones_are_the_same() -> None:
    x, residual = (torch.randn(33, 7, requires_grad=True) for _ in range(2))
    weight = torch.randn(33, 7)

    def gradients(out: Tensor) -> Tensor:
        return torch.stack(torch.autograd.grad((out * weight).sum(), (x, residual)))

    assert torch.equal(
        *both(
            lambda: gradients(dropout_add(x, residual, 0.4, True)),
            lambda: gradients(residual + dropout(x, 0.4, True)),
        )
    )
    (fused,), (plain,) = (
        torch.autograd.grad((out * weight).sum(), (x,))
        for out in both(lambda: relu_dropout(x, 0.4, True), lambda: dropout(x.relu(), 0.4, True))
    )
    assert torch.equal(fused, plain)


def test_ops_pass_torch_library_checks() -> None:
    x, residual = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    seed = torch.tensor(7)
    torch.library.opcheck(torch.ops.gtkern.dropout, (x, residual, 0.5, seed))
    torch.library.opcheck(torch.ops.gtkern.relu_dropout, (x, 0.5, seed))
    torch.library.opcheck(torch.ops.gtkern.relu_dropout_bwd, (x, residual.detach(), 0.5))


def test_gradients_of_gradients_are_right() -> None:
    x, residual = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    seed = torch.tensor(7)

    def cubed(x: Tensor, residual: Tensor) -> Tensor:
        added: Tensor = torch.ops.gtkern.dropout(x, residual, 0.5, seed)
        return torch.ops.gtkern.relu_dropout(added, 0.5, seed) ** 3

    torch.autograd.gradcheck(cubed, (x, residual))
    torch.autograd.gradgradcheck(cubed, (x, residual))


def test_threads_do_not_change_the_mask() -> None:
    x, before = torch.ones(100_000), torch.get_num_threads()
    masks = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            masks.append(dropout(x, 0.5, True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*masks)


def test_a_nan_stays_one() -> None:
    x = torch.full((64,), float("nan"))
    assert relu_dropout(x, 0.5, True).isnan().all()
    assert dropout_add(x, torch.ones(64), 0.5, True).isnan().all()


def test_a_residual_of_another_dtype_is_added_as_torch_does() -> None:
    out = dropout_add(torch.ones(8, dtype=torch.bfloat16), torch.ones(8), 0.5, True)
    assert out.dtype == torch.float32
