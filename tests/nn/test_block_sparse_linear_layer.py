"""BlockSparseLinear: a drop-in twin of torch.nn.Linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from gtkern.nn import BlockSparseLinear


def test_all_blocks_give_the_dense_layer() -> None:
    dense = nn.Linear(50, 40)
    layer = BlockSparseLinear.from_linear(dense, (8, 16))
    x = torch.randn(3, 7, 50)
    torch.testing.assert_close(layer(x), dense(x))


def test_gradients_reach_the_kept_blocks_alone() -> None:
    dense = nn.Linear(64, 48)
    layer = BlockSparseLinear.from_linear(dense, 16, keep=0.4, activation="gelu")
    inside = layer.weight.mask().repeat_interleave(16, 0).repeat_interleave(16, 1)
    with torch.no_grad():
        dense.weight.mul_(inside)
    x = torch.randn(9, 64)
    layer(x).square().sum().backward()
    functional.gelu(dense(x)).square().sum().backward()
    grads = layer.weight.with_values(layer.values.grad).to_dense()
    torch.testing.assert_close(grads, dense.weight.grad * inside)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def test_a_state_dict_brings_its_structure() -> None:
    dense = nn.Linear(64, 64, bias=False)
    masks = [torch.eye(4, dtype=torch.bool), torch.eye(4, dtype=torch.bool).flip(0)]
    one, other = (BlockSparseLinear.from_linear(dense, 16, mask=mask) for mask in masks)
    other.load_state_dict(one.state_dict())
    x = torch.randn(5, 64)
    assert torch.equal(one(x), other(x))
    other.weight.validate()


def test_autocast_computes_in_its_dtype() -> None:
    layer = BlockSparseLinear.from_linear(nn.Linear(32, 32), 16, keep=0.5)
    x = torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), atol=3e-2, rtol=0)
    out.float().sum().backward()
    assert layer.values.grad is not None and layer.values.grad.dtype == torch.float32


def test_bad_input_is_refused() -> None:
    weight = BlockSparseLinear.from_linear(nn.Linear(32, 32), 16).weight
    with pytest.raises(ValueError, match=r"^bias must have shape \[C_out\] = \[32\], got \[31\]"):
        BlockSparseLinear(weight, torch.ones(31))
