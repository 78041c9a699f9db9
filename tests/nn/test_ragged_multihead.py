"""RaggedMultiheadAttention against torch.nn.MultiheadAttention, graph by graph."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from gtkern import PairIndex, Ragged
from gtkern.nn import RaggedMultiheadAttention

WIDTH, HEADS = 12, 3
PTR = (0, 4, 4, 5, 11)


def twins(bias: bool) -> tuple[RaggedMultiheadAttention, torch.nn.MultiheadAttention]:
    """Both modules with one state, every parameter of it random."""
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=True)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mine = RaggedMultiheadAttention(WIDTH, HEADS, bias=bias)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


@pytest.mark.parametrize("bias", [True, False])
def test_each_graph_gets_what_torchs_module_gives_it_alone(bias: bool) -> None:
    mine, theirs = twins(bias)
    x = torch.randn(PTR[-1], WIDTH)
    expected = [
        theirs(x[first:end], x[first:end], x[first:end], need_weights=False)[0]
        for first, end in itertools.pairwise(PTR)
        if end > first
    ]
    found = mine(x, Ragged.from_ptr(torch.tensor(PTR)))
    torch.testing.assert_close(found, torch.cat(expected))
    theirs.load_state_dict(mine.state_dict())


def test_bias_and_prefix_reach_the_scores() -> None:
    mine, theirs = twins(True)
    nodes, slots, width = 5, 2, WIDTH // HEADS
    x = torch.randn(nodes, WIDTH)
    table = torch.randn(4, HEADS)
    prefix_k, prefix_v = torch.randn(2, slots, HEADS, width)
    ragged = Ragged.from_ptr(torch.tensor([0, nodes]))
    index = torch.randint(4, (nodes, nodes), dtype=torch.uint8)
    found = mine(
        x, ragged, [(PairIndex.from_tensor(index.flatten(), ragged, 4), table)], prefix_k, prefix_v
    )
    projected = torch.nn.functional.linear(x, theirs.in_proj_weight, theirs.in_proj_bias)
    q, k, v = projected.view(nodes, 3, HEADS, width).unbind(1)
    bias = torch.cat((table[index.long()], torch.zeros(nodes, slots, HEADS)), dim=1)
    heads = []
    for h in range(HEADS):
        score = q[:, h] @ torch.cat((k, prefix_k))[:, h].T * width**-0.5 + bias[:, :, h]
        heads.append(score.softmax(1) @ torch.cat((v, prefix_v))[:, h])
    torch.testing.assert_close(found, theirs.out_proj(torch.cat(heads, dim=1)))


def test_dropout_is_for_training() -> None:
    layer = RaggedMultiheadAttention(WIDTH, HEADS, dropout=0.5)
    x, ragged = torch.randn(PTR[-1], WIDTH), Ragged.from_ptr(torch.tensor(PTR))

    def twice() -> tuple[Tensor, Tensor]:
        return layer(x, ragged), layer(x, ragged)

    assert not torch.equal(*twice())
    layer.eval()
    assert torch.equal(*twice())


def test_autocast_narrows_the_prefix_too() -> None:
    layer = RaggedMultiheadAttention(WIDTH, HEADS)
    prefix = torch.randn(2, HEADS, WIDTH // HEADS)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(
            torch.randn(4, WIDTH), Ragged.from_ptr(torch.tensor([0, 4])), (), prefix, prefix
        )
    assert found.dtype == torch.bfloat16


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"^num_heads must divide embed_dim 12, got 5"):
        RaggedMultiheadAttention(WIDTH, 5)


def test_fewer_heads_keep_their_width() -> None:
    layer = RaggedMultiheadAttention(WIDTH, 2, head_dim=4)
    assert layer.in_proj_weight.shape == (3 * 8, WIDTH)
    assert layer.out_proj.weight.shape == (WIDTH, 8)
    whole = RaggedMultiheadAttention(WIDTH, HEADS)
    with torch.no_grad():
        # the third head of `whole` reaches nothing
        whole.out_proj.weight[:, 8:] = 0
        layer.out_proj.weight.copy_(whole.out_proj.weight[:, :8])
        layer.in_proj_weight.copy_(whole.in_proj_weight.view(3, WIDTH, WIDTH)[:, :8].flatten(0, 1))
    x, ragged = torch.randn(PTR[-1], WIDTH), Ragged.from_ptr(torch.tensor(PTR))
    torch.testing.assert_close(layer(x, ragged), whole(x, ragged))
    torch.testing.assert_close(whole.keep_heads([0, 1])(x, ragged), whole(x, ragged))


def test_kept_heads_read_their_columns_of_bias_and_prefix() -> None:
    whole = RaggedMultiheadAttention(WIDTH, HEADS)
    with torch.no_grad():
        whole.out_proj.weight[:, 4:8] = 0
    nodes = 5
    ragged = Ragged.from_ptr(torch.tensor([0, nodes]))
    index = torch.randint(4, (nodes * nodes,), dtype=torch.uint8)
    bias = [(PairIndex.from_tensor(index, ragged, 4), torch.randn(4, HEADS))]
    prefix_k, prefix_v = torch.randn(2, 3, HEADS, WIDTH // HEADS)
    x = torch.randn(nodes, WIDTH)
    expected = whole(x, ragged, bias, prefix_k, prefix_v)
    kept = whole.keep_heads([0, 2])
    assert kept.heads == (0, 2)
    torch.testing.assert_close(kept(x, ragged, bias, prefix_k, prefix_v), expected)
    assert kept.keep_heads([1]).heads == (2,)


def test_each_graph_sees_its_set_of_prefixes() -> None:
    whole = RaggedMultiheadAttention(WIDTH, HEADS)
    ragged = Ragged.from_ptr(torch.tensor(PTR))
    prefix_k, prefix_v = torch.randn(2, 2, 3, HEADS, WIDTH // HEADS)
    x, sets = torch.randn(PTR[-1], WIDTH), torch.tensor([1, 0, -1, 0])
    for layer in (whole, whole.keep_heads([0, 2])):
        found = layer(x, ragged, (), prefix_k, prefix_v, sets)
        torch.testing.assert_close(found[:4], layer(x, ragged, (), prefix_k[1], prefix_v[1])[:4])
        torch.testing.assert_close(found[4:5], layer(x, ragged)[4:5])
        torch.testing.assert_close(found[5:], layer(x, ragged, (), prefix_k[0], prefix_v[0])[5:])


@pytest.mark.parametrize("heads", [[], [1, 0], [0, 0], [-1], [3]])
def test_kept_heads_must_be_there_and_rise(heads: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^heads must be one or more of 0 \.\. 2, rising, got"):
        RaggedMultiheadAttention(WIDTH, HEADS).keep_heads(heads)


def test_head_dim_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"^head_dim must be at least 1, got 0"):
        RaggedMultiheadAttention(WIDTH, 2, head_dim=0)
