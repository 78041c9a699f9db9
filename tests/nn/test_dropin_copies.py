"""Twins of layers that are published as code to copy, against these layers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gtkern
from bench.copied_layers import (
    Exphormer,
    ExphormerAttention,
    Graphormer,
    GraphormerMultiheadAttention,
)
from gtkern.testing import random_edges
from tests.nn.twins import assert_same, is_twin

pytestmark = pytest.mark.usefixtures("of_any_size")

NODES = 7


def accelerated(layer: nn.Module) -> nn.Module:
    twin = copy.deepcopy(layer)
    report = gtkern.accelerate(twin, ignore_padding=True)
    assert report.replaced, str(report)
    return twin


def exphormer_inputs(edges: int, width: int) -> tuple[Tensor, ...]:
    rows = (NODES, edges, 1, 2 * NODES)
    return tuple(torch.randn(count, width) for count in rows)


def both_ways() -> Tensor:
    """Edges between every node and the virtual one."""
    nodes = torch.arange(NODES)
    virtual = torch.full_like(nodes, NODES)
    return torch.stack((torch.cat((nodes, virtual)), torch.cat((virtual, nodes))))


@settings(max_examples=12)
@given(st.sampled_from([1, 2, 3]), st.booleans(), st.booleans(), st.integers(1, 40))
def test_exphormer_attention(heads: int, bias: bool, virtual: bool, edges: int) -> None:
    torch.manual_seed(edges)
    layer = ExphormerAttention(12, 12, heads, bias, virtual)
    index = random_edges("uniform", NODES, edges, seed=edges)
    sides = (Exphormer(each, index, both_ways()) for each in (layer, accelerated(layer)))
    assert_same(*sides, exphormer_inputs(edges, 12))


sizes = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@settings(max_examples=12)
@given(sizes, st.sampled_from([1, 2, 3]), st.booleans())
def test_graphormer_attention(sizes: list[int], heads: int, biased: bool) -> None:
    torch.manual_seed(len(sizes))
    layer = GraphormerMultiheadAttention(12, heads)
    length = max(sizes)
    padding = torch.arange(length) >= torch.tensor(sizes)[:, None]
    bias = torch.randn(len(sizes), heads, length, length) if biased else None
    sides = (Graphormer(each, padding) for each in (layer, accelerated(layer)))
    assert_same(*sides, (torch.randn(length, len(sizes), 12), bias))


def test_calls_that_say_more_than_padding_are_the_layers_own() -> None:
    layer = GraphormerMultiheadAttention(12, 2)
    twin = accelerated(layer)
    x, padding = torch.randn(3, 2, 12), torch.tensor([[False] * 3, [False, False, True]])
    for named in (
        {"key_padding_mask": padding},
        {"key_padding_mask": padding, "before_softmax": True},
        {"need_weights": False},
        {"key_padding_mask": padding, "attn_mask": torch.randn(3, 3), "need_weights": False},
    ):
        out, expected = (each(x, x, x, None, **named) for each in (twin, layer))
        assert torch.equal(out[0], expected[0])


def test_graphormers_rows_of_padding_are_left_alone_unless_nothing_reads_them() -> None:
    model = GraphormerMultiheadAttention(12, 2)
    (change,) = gtkern.accelerate(model).left
    assert "ignore_padding=True" in change.note
    assert not is_twin(model)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_twin_of_a_copied_layer_is_copied_and_restored(way: Any) -> None:
    layer = ExphormerAttention(12, 12, 2, False, False)
    kept = dict(vars(layer))
    twin = accelerated(layer)
    other = way(twin)
    assert is_twin(other)
    assert isinstance(other, ExphormerAttention)
    index, inputs = random_edges("uniform", NODES, 20, seed=1), exphormer_inputs(20, 12)
    first, second = (Exphormer(each, index, both_ways())(*inputs)[0] for each in (twin, other))
    assert torch.equal(first, second)
    assert gtkern.restore(other) == 1
    assert type(other) is ExphormerAttention
    assert vars(other).keys() == kept.keys()


def test_a_layer_of_the_name_that_computes_something_else_is_left_alone() -> None:
    class Changed(ExphormerAttention):
        def forward(self, batch: Any) -> Tensor:
            return 1.01 * super().forward(batch)

    class Broken(ExphormerAttention):
        def forward(self, batch: Any) -> Tensor:
            return batch.something_of_mine

    Changed.__name__ = Broken.__name__ = "ExphormerAttention"
    model = nn.ModuleList([Changed(8, 8, 2, False, False), Broken(8, 8, 2, False, False)])
    before = [dict(vars(layer)) for layer in model]
    report = gtkern.accelerate(model)
    assert not report.replaced
    assert "computes something else" in report.left[0].note
    assert "AttributeError: " in report.left[1].note
    assert [dict(vars(layer)) for layer in model] == before
    assert not any(is_twin(layer) for layer in model)


def test_the_try_draws_nothing_from_the_users_generator() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    model = ExphormerAttention(8, 8, 2, False, False)
    torch.manual_seed(4)
    gtkern.accelerate(model)
    assert torch.equal(torch.rand(3), expected)


def test_dropout_is_that_of_the_layer() -> None:
    layer = GraphormerMultiheadAttention(12, 2, dropout=0.5)
    twin = accelerated(layer)
    x = torch.randn(6, 40, 12)
    padding = torch.zeros(40, 6, dtype=torch.bool)
    named = {"key_padding_mask": padding, "need_weights": False}
    model, other = (each.attention_dropout_module for each in (layer, twin))
    assert model.training and other.training
    first, second = (twin(x, x, x, None, **named)[0] for _ in range(2))
    assert not torch.equal(first, second)
    # by its module, as the layer
    for each in (layer, twin):
        each.attention_dropout_module.eval()
    found, expected = (each(x, x, x, None, **named)[0] for each in (twin, layer))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_layer_may_change_the_width() -> None:
    accelerated(ExphormerAttention(8, 12, 2, False, False))


def test_a_mask_of_numbers_is_left_to_the_layer() -> None:
    twin = accelerated(GraphormerMultiheadAttention(12, 2))
    padding = torch.tensor([[0, 0, 0], [0, 0, 1]], dtype=torch.uint8)
    assert twin._worthwhile(padding) is None
    assert twin._worthwhile(padding.bool()) is not None
