"""Attention over kept tokens: the same as attention over those alone, and what scorers learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gtkern import PairIndex, Ragged
from gtkern.nn import RaggedMultiheadAttention, TokenDroppingAttention

WIDTH = 8


def ragged_of(*sizes: int) -> Ragged:
    return Ragged.from_ptr(torch.tensor([0, *sizes]).cumsum(0))


def made(ratio: float, **options: object) -> TokenDroppingAttention:
    torch.manual_seed(1)
    inner = RaggedMultiheadAttention(WIDTH, 2)
    return TokenDroppingAttention(inner, ratio, **options).double()  # type: ignore[arg-type]


def rows(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)


def pair_bias(ragged: Ragged) -> tuple[PairIndex, Tensor]:
    generator = torch.Generator().manual_seed(3)
    entry = torch.randint(5, (ragged.num_pairs,), generator=generator, dtype=torch.uint8)
    table = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    return PairIndex.from_tensor(entry, ragged, 5), table


@pytest.mark.parametrize("mode", ["gather", "mask"])
def test_keeping_everything_is_the_attention_itself(mode: str) -> None:
    ragged, block = ragged_of(5, 0, 3), made(1.0, mode=mode)
    x, bias = rows(8), [pair_bias(ragged_of(5, 0, 3))]
    torch.testing.assert_close(block(x, ragged, bias), block.attention(x, ragged, bias))


def test_kept_tokens_attend_among_themselves_and_others_get_zero() -> None:
    ragged, block = ragged_of(5, 2), made(0.5).eval()
    x = rows(7)
    index, table = pair_bias(ragged)
    out = block(x, ragged, [(index, table)])
    score = block.scorer(x)[:, 0]
    for first, size, keep in ((0, 5, 3), (5, 2, 1)):
        kept = score[first : first + size].topk(keep).indices.sort().values
        begin = int(ragged.pair_ptr[0 if first == 0 else 1])
        square = index.index[begin : begin + size**2].view(size, size)
        alone = ragged_of(keep)
        among = PairIndex.from_tensor(square[kept][:, kept].flatten(), alone, 5)
        expected = torch.zeros(size, WIDTH, dtype=torch.float64)
        expected[kept] = block.attention(x[first + kept], alone, [(among, table)])
        torch.testing.assert_close(out[first : first + size], expected)


def test_a_mask_leaves_rows_of_zeros_that_attend() -> None:
    ragged, block = ragged_of(6, 3), made(0.5, mode="mask").eval()
    x = rows(9)
    score = block.scorer(x)[:, 0]
    mask = torch.zeros(9, dtype=torch.float64)
    mask[score[:6].topk(3).indices] = 1
    mask[6 + score[6:].topk(2).indices] = 1
    torch.testing.assert_close(block(x, ragged), block.attention(x * mask[:, None], ragged))


def test_released_masks_are_those_of_the_padded_batch() -> None:
    ragged, block = ragged_of(6, 3, 5), made(0.5, mode="released").eval()
    x = rows(14)
    torch.manual_seed(4)
    out = block(x, ragged)
    # as the released code has it, place by place
    padded = torch.zeros(3, 6, WIDTH, dtype=torch.float64)
    real = torch.arange(6) < ragged.sizes()[:, None]
    padded[real] = x
    torch.manual_seed(4)
    noise = -torch.empty(3, 6, dtype=torch.float64).exponential_().log()
    y = torch.softmax(torch.log_softmax(block.scorer(padded)[..., 0], -1) + noise, -1)
    mask = torch.zeros_like(y).scatter(1, y.topk(3, dim=1).indices, 1.0)
    mask[:, -1] = 1
    expected = block.attention((padded * mask[..., None])[real], ragged)
    torch.testing.assert_close(out, expected)


def test_a_graph_does_not_depend_on_its_batch() -> None:
    block = made(0.4).eval()
    x, other = rows(7), rows(9, 5)
    alone = block(x, ragged_of(7))
    torch.testing.assert_close(block(torch.cat((x, other)), ragged_of(7, 9))[:7], alone)


@pytest.mark.parametrize("mode", ["gather", "mask", "released"])
def test_scorers_learn(mode: str) -> None:
    ragged, block = ragged_of(6, 4), made(0.5, mode=mode)
    block(rows(10), ragged).square().sum().backward()
    assert block.scorer.weight.grad is not None
    assert block.scorer.weight.grad.abs().max() > 1e-6


def test_the_scorers_gradient_is_that_of_the_soft_choice() -> None:
    ragged, block = ragged_of(5), made(0.6, temperature=0.5).eval()
    x = rows(5)
    weight = rows(5, 2)
    (block(x, ragged) * weight).sum().backward()
    found = block.scorer.weight.grad
    assert found is not None
    score = block.scorer(x)[:, 0]
    kept = score.topk(3).indices.sort().values
    gate = torch.ones(3, dtype=torch.float64, requires_grad=True)
    out = block.attention(x[kept] * gate[:, None], ragged_of(3))
    by_gate = torch.autograd.grad((out * weight[kept]).sum(), gate)[0]
    y = torch.softmax(score / 0.5, 0)
    expected = torch.autograd.grad((y[kept] * by_gate).sum(), block.scorer.weight)[0]
    torch.testing.assert_close(found, expected)


def test_a_mask_hands_on_gradients_of_dropped_tokens_too() -> None:
    ragged, block = ragged_of(5), made(0.6, mode="mask", temperature=0.5).eval()
    x = rows(5)
    weight = rows(5, 2)
    (block(x, ragged) * weight).sum().backward()
    found = block.scorer.weight.grad
    assert found is not None
    score = block.scorer(x)[:, 0]
    hard = torch.zeros_like(score).index_fill(0, score.topk(3).indices, 1.0)
    y = torch.softmax(score / 0.5, 0)
    masked = x * (hard - y.detach() + y)[:, None]
    by_mask = (block.attention(masked, ragged) * weight).sum()
    torch.testing.assert_close(found, torch.autograd.grad(by_mask, block.scorer.weight)[0])


def test_tokens_at_the_ends_are_always_kept() -> None:
    ragged, block = ragged_of(6, 2, 7), made(0.4, always_keep=(1, 2)).eval()
    out = block(rows(15), ragged)
    kept = (out != 0).any(1).tolist()
    # 3 of 6, 2 of 2 and 3 of 7: nothing is left for the others
    assert kept == [1, 0, 0, 0, 1, 1, *(1, 1), *(1, 0, 0, 0, 0, 1, 1)]


def test_noise_is_drawn_in_training_alone() -> None:
    ragged, block = ragged_of(40), made(0.3)
    x = rows(40)
    assert not torch.equal(block(x, ragged), block(x, ragged))
    block.eval()
    assert torch.equal(block(x, ragged), block(x, ragged))
    block.train()
    block.noise = False
    assert torch.equal(block(x, ragged), block(x, ragged))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratio": 0.0}, r"^ratio must be in \(0, 1\], got 0.0"),
        ({"ratio": 1.5}, r"^ratio must be in \(0, 1\], got 1.5"),
        ({"mode": "drop"}, r"^mode must be one of gather, mask, released, got 'drop'"),
        ({"temperature": 0.0}, r"^temperature must be positive, got 0.0"),
        ({"always_keep": (1, -1)}, r"^always_keep must be two numbers, none negative, got \(1, -1"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        made(**{"ratio": 0.5, **options})  # type: ignore[arg-type]
