"""The twin of a pruned torch.nn.Linear against the layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import gtkern
from tests.nn.twins import assert_same, is_twin

ROWS = 1050


def pruned(mask: Tensor, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(mask.size(1), mask.size(0), bias=bias)
    return prune.custom_from_mask(layer, "weight", mask)


def blocks(rows: int, columns: int, size: int, kept: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(rows // size, columns // size, generator=generator) < kept).float()
    return mask.repeat_interleave(size, 0).repeat_interleave(size, 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_pruned_linear(size: int, bias: bool) -> None:
    mask = blocks(256, 320, size, 0.3)
    layer, twin = pruned(mask, bias), pruned(mask, bias)
    assert gtkern.accelerate(twin).replaced
    assert_same(layer, twin, (torch.randn(3, ROWS // 3, 320),))
    assert_same(layer, twin, (torch.randn(5, 320),))
    assert list(twin.state_dict()) == list(layer.state_dict())


def test_single_zeros_inside_blocks_stay_zeros() -> None:
    mask = blocks(256, 256, 32, 0.4) * (torch.rand(256, 256) < 0.8)
    layer, twin = pruned(mask), pruned(mask)
    gtkern.accelerate(twin)
    assert_same(layer, twin, (torch.randn(ROWS, 256),))


def test_pruning_goes_on() -> None:
    layer, twin = (pruned(blocks(256, 256, 32, 0.5)) for _ in range(2))
    gtkern.accelerate(twin)
    x = torch.randn(ROWS, 256)
    twin(x)
    for each in (layer, twin):
        each.weight_mask[:32] = 0
    assert_same(layer, twin, (x,))
    for each in (layer, twin):
        prune.remove(each, "weight")
    assert_same(layer, twin, (x,))


def test_scattered_zeros_are_left_alone() -> None:
    model = nn.Sequential(
        pruned((torch.rand(256, 256) < 0.2).float()), nn.Linear(256, 256), pruned(torch.ones(8, 8))
    )
    report = gtkern.accelerate(model)
    assert not report.replaced
    assert [change.name for change in report.left] == ["0", "2"]
    assert "prune whole blocks" in report.left[0].note
    assert not any(is_twin(layer) for layer in model)


def test_a_pattern_of_zeros_is_used_while_nothing_trains_it() -> None:
    layer = nn.Linear(320, 256)
    with torch.no_grad():
        layer.weight.mul_(blocks(256, 320, 32, 0.3))
    twin = copy.deepcopy(layer)
    (change,) = gtkern.accelerate(twin).replaced
    assert "training" in change.note
    x = torch.randn(ROWS, 320)
    # zeros that train have gradients, and those are the layer's own
    assert_same(layer, twin, (x,))
    for each in (layer, twin):
        each.weight.requires_grad_(False)
    assert_same(layer, twin, (x,))
    assert twin._matrix() is not None
    with torch.no_grad():
        for each in (layer, twin):
            each.weight[:64] = 1
    assert_same(layer, twin, (x,))
    with torch.inference_mode():
        torch.testing.assert_close(twin(x), layer(x), rtol=1e-5, atol=1e-5)


def test_dense_layers_are_not_spoken_of() -> None:
    report = gtkern.accelerate(nn.Linear(256, 256))
    assert not report.replaced
    assert not report.left
