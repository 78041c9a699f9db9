"""Twins of layers that work on padded batches against these layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import GINConv, GPSConv, TransformerConv

import gtkern
from gtkern.testing import random_edges
from tests.nn.twins import assert_same, is_twin

pytestmark = pytest.mark.usefixtures("of_any_size")

WIDTH = 12


class RealRows(nn.Module):
    """Calls a layer on a padded batch and reads what is no padding."""

    def __init__(self, layer: nn.Module, padding: Tensor, batch_first: bool) -> None:
        super().__init__()
        self.layer, self.padding, self.batch_first = layer, padding, batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1).contiguous()
        if isinstance(self.layer, nn.MultiheadAttention):
            out = self.layer(x, x, x, key_padding_mask=self.padding, need_weights=False)[0]
        else:
            out = self.layer(x, src_key_padding_mask=self.padding)
        out = out if self.batch_first else out.transpose(0, 1)
        real: Tensor = out[self.padding == 0]
        return real


def padded(sizes: list[int], as_float: bool) -> tuple[Tensor, Tensor]:
    """A batch [G, n, C], and where its padding is; some of it in front."""
    length = max(sizes)
    padding = torch.arange(length) >= torch.tensor(sizes)[:, None]
    padding[0] = padding[0].flip(0)
    if as_float:
        return torch.randn(len(sizes), length, WIDTH), torch.zeros(padding.shape).masked_fill(
            padding, -torch.inf
        )
    return torch.randn(len(sizes), length, WIDTH), padding


def copied(layer: nn.Module) -> nn.Module:
    twin = copy.deepcopy(layer)
    report = gtkern.accelerate(twin, ignore_padding=True)
    assert report.replaced, str(report)
    return twin


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@settings(max_examples=12)
@given(sizes, st.sampled_from([1, 2, 3]), st.booleans(), st.booleans(), st.booleans())
def test_multihead_attention(
    sizes: list[int], heads: int, batch_first: bool, bias: bool, as_float: bool
) -> None:
    torch.manual_seed(len(sizes))
    layer = nn.MultiheadAttention(WIDTH, heads, bias=bias, batch_first=batch_first)
    x, padding = padded(sizes, as_float)
    sides = (RealRows(each, padding, batch_first) for each in (layer, copied(layer)))
    assert_same(*sides, (x,))


@settings(max_examples=12)
@given(sizes, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_transformer_encoder_layer(
    sizes: list[int], batch_first: bool, norm_first: bool, bias: bool, as_float: bool
) -> None:
    torch.manual_seed(len(sizes))
    layer = nn.TransformerEncoderLayer(
        WIDTH, 2, 16, 0.0, "gelu", batch_first=batch_first, norm_first=norm_first, bias=bias
    )
    x, padding = padded(sizes, as_float)
    sides = (RealRows(each, padding, batch_first) for each in (layer, copied(layer)))
    assert_same(*sides, (x,))


@pytest.mark.parametrize("training", [True, False])
def test_a_whole_encoder(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3).train(training)
    x, padding = padded([3, 7, 1], as_float=False)
    twin = copied(encoder)
    with torch.set_grad_enabled(training):
        out, expected = (
            each(x, src_key_padding_mask=padding)[~padding] for each in (twin, encoder)
        )
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_calls_that_say_more_than_padding_are_the_layers_own() -> None:
    layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval()
    twin = copied(layer)
    x, padding = padded([3, 7, 1], as_float=False)
    mask = torch.randn(7, 7)
    for named in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": mask, "need_weights": False},
        {"key_padding_mask": torch.randn(3, 7), "need_weights": False},
    ):
        out, expected = (each(x, x, x, **named) for each in (twin, layer))
        assert torch.equal(out[0], expected[0])


def test_padding_is_left_alone_unless_nothing_reads_it() -> None:
    model = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    report = gtkern.accelerate(model)
    assert not report.replaced
    (change,) = report.left
    assert "ignore_padding=True" in change.note
    assert not is_twin(model)


@settings(max_examples=12)
@given(
    sizes,
    st.sampled_from(["batch_norm", "layer_norm", "graph_norm", None]),
    st.sampled_from(["gin", "transformer", None]),
    st.booleans(),
    st.booleans(),
)
def test_gps_conv(
    sizes: list[int], norm: str | None, conv: str | None, one_graph: bool, training: bool
) -> None:
    torch.manual_seed(len(sizes))
    nodes = sum(sizes)
    local: dict[str, Any] = {
        "gin": lambda: GINConv(nn.Linear(WIDTH, WIDTH)),
        "transformer": lambda: TransformerConv(WIDTH, WIDTH),
    }
    if nodes < 2 or len(sizes) < 2:
        # a batch norm has nothing to average
        norm = None
    layer = GPSConv(WIDTH, local[conv]() if conv else None, heads=3, norm=norm, act="gelu")
    batch = None if one_graph else torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    edges = random_edges("uniform", nodes, 3 * nodes, seed=nodes)
    twin = copied(layer.train(training))
    assert is_twin(twin)
    assert_same(layer, twin, (torch.randn(nodes, WIDTH), edges, batch))


def test_gps_conv_of_another_attention_is_left_alone() -> None:
    model = GPSConv(WIDTH, None, attn_type="performer")
    (change,) = gtkern.accelerate(model).left
    assert "PerformerAttention" in change.note
