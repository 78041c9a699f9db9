"""The twin of PyG's TopKPooling against the layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import TopKPooling

import gtkern
from gtkern.testing import random_edges
from tests.nn.twins import assert_same, is_twin, twin_of

pytestmark = pytest.mark.usefixtures("of_any_size")

CHANNELS = 5


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 0),
    st.sampled_from([0.1, 0.5, 0.7, 1, 3]),
    st.sampled_from([1.0, 2.5]),
    st.sampled_from(["tanh", "sigmoid"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_topk_pooling(
    sizes: list[int],
    ratio: Any,
    multiplier: float,
    nonlinearity: str,
    one_graph: bool,
    with_attr: bool,
    with_attn: bool,
) -> None:
    torch.manual_seed(sum(sizes))
    layer = TopKPooling(CHANNELS, ratio, None, multiplier, nonlinearity)
    nodes = sum(sizes)
    batch = None if one_graph else torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    edges = random_edges("uniform", nodes, 3 * nodes, seed=nodes)
    attr = torch.randn(3 * nodes, 2) if with_attr else None
    attn = torch.randn(nodes, CHANNELS) if with_attn else None
    x = torch.randn(nodes, CHANNELS)
    twin = twin_of(layer)
    assert_same(layer, twin, (x, edges, attr, batch, attn))
    expected, found = layer(x, edges, attr, batch, attn), twin(x, edges, attr, batch, attn)
    for at in (1, 3, 4):  # edges, graphs and nodes are whole numbers
        assert torch.equal(found[at], expected[at])
        assert found[at].dtype == expected[at].dtype


@pytest.mark.parametrize("case", ["unsorted batch", "nan", "hook"])
def test_calls_that_keep_the_old_way(case: str) -> None:
    layer = TopKPooling(CHANNELS)
    twin = twin_of(layer)
    x, edges = torch.randn(6, CHANNELS), random_edges("uniform", 6, 20, seed=3)
    batch = torch.tensor([1, 0, 0, 1, 0, 1]) if case == "unsorted batch" else None
    seen = []
    if case == "nan":
        x[2, 1] = torch.nan
    if case == "hook":
        twin.select.register_forward_hook(lambda *_: seen.append(1))
    expected, found = layer(x, edges, None, batch), twin(x, edges, None, batch)
    assert torch.equal(found[4], expected[4])
    assert torch.equal(found[1], expected[1])
    assert len(seen) == (case == "hook")


def test_min_score_is_left_alone() -> None:
    model = TopKPooling(CHANNELS, min_score=0.2)
    (change,) = gtkern.accelerate(model).left
    assert "min_score" in change.note
    assert not is_twin(model)


def test_a_pooling_made_by_itself_is_restored() -> None:
    layer = gtkern.nn.TopKPooling(CHANNELS, ratio=0.5)
    other = copy.deepcopy(layer)
    assert gtkern.restore(other) == 1
    assert type(other) is TopKPooling
    assert_same(other, layer, (torch.randn(8, CHANNELS), random_edges("uniform", 8, 20, seed=1)))


def test_small_calls_are_the_layers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = twin_of(TopKPooling(CHANNELS))
    x, edges = torch.randn(6, CHANNELS), random_edges("uniform", 6, 20, seed=3)
    monkeypatch.setattr(type(twin), "fewest", 6 * CHANNELS + 1)
    seen: list[int] = []
    monkeypatch.setattr(twin.select, "forward", lambda *given: seen.append(1) or select(*given))
    select = type(twin.select).forward.__get__(twin.select)
    twin(x, edges)
    assert len(seen) == 1
    monkeypatch.setattr(type(twin), "fewest", 6 * CHANNELS)
    twin(x, edges)
    assert len(seen) == 1
