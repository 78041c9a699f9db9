"""Twins of PyG's message-passing layers against these layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import APPNP, GATConv, GATv2Conv, TransformerConv
from torch_geometric.utils import to_undirected

import gtkern
from gtkern import Graph
from gtkern.nn.dropin.appnp import APPNP as APPNP_TWIN
from gtkern.testing import LAWS, random_edges
from tests.nn.twins import assert_same, results, twin_of

pytestmark = pytest.mark.usefixtures("of_any_size")

WIDTH, EDGE_WIDTH = 5, 3


@st.composite
def graphs(draw: st.DrawFn, bipartite: bool = True) -> tuple[Tensor, tuple[int, int]]:
    """An edge_index with its numbers of sources and destinations; duplicates and loops occur."""
    sources = draw(st.integers(1, 30))
    sizes = (sources, draw(st.integers(1, 30)) if bipartite and draw(st.booleans()) else sources)
    edges = random_edges(
        draw(st.sampled_from(LAWS)), sizes, draw(st.integers(0, 120)), seed=draw(st.integers(0, 99))
    )
    return edges, sizes


def features(sizes: tuple[int, int], together: bool) -> Tensor | tuple[Tensor, Tensor]:
    x = tuple(torch.randn(size, WIDTH) for size in sizes)
    return x[0] if together else (x[0], x[1])


class OnParts(nn.Module):
    """Calls a layer on a pair of features that are given one by one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, source: Tensor, target: Tensor, *rest: Any) -> Any:
        return self.layer((source, target), *rest)


def compare(layer: nn.Module, x: Any, *rest: Any) -> None:
    twin = twin_of(layer)
    if isinstance(x, tuple):
        assert_same(OnParts(layer), OnParts(twin), (*x, *rest))
    else:
        assert_same(layer, twin, (x, *rest))


@settings(max_examples=25)
@given(
    graphs(),
    st.fixed_dictionaries(
        {
            "heads": st.integers(1, 3),
            "concat": st.booleans(),
            "beta": st.booleans(),
            "bias": st.booleans(),
            "root_weight": st.booleans(),
            "edge_dim": st.sampled_from([None, EDGE_WIDTH]),
        }
    ),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_transformer_conv(
    graph: tuple[Tensor, tuple[int, int]],
    options: dict[str, Any],
    width: int,
    weights: bool,
    training: bool,
) -> None:
    edges, sizes = graph
    torch.manual_seed(edges.size(1))
    layer = TransformerConv(WIDTH, width, **options).train(training)
    attr = torch.randn(edges.size(1), EDGE_WIDTH) if options["edge_dim"] else None
    x = features(sizes, together=sizes[0] == sizes[1])
    compare(layer, x, edges, attr, True if weights else None)


@settings(max_examples=25)
@given(
    graphs(),
    st.fixed_dictionaries(
        {
            "heads": st.integers(1, 3),
            "concat": st.booleans(),
            "bias": st.booleans(),
            "residual": st.booleans(),
            "add_self_loops": st.booleans(),
            "negative_slope": st.sampled_from([0.2, 0.0, 0.7]),
            "edge_dim": st.sampled_from([None, EDGE_WIDTH]),
            "fill_value": st.sampled_from(["mean", 0.5]),
        }
    ),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_gat_conv(
    graph: tuple[Tensor, tuple[int, int]],
    options: dict[str, Any],
    width: int,
    weights: bool,
    training: bool,
) -> None:
    edges, sizes = graph
    torch.manual_seed(edges.size(1))
    together = sizes[0] == sizes[1]
    if not together:
        # PyG takes the mean over the edges into nodes that are sources too, and finds others
        options = options | {"fill_value": 0.5}
    layer = GATConv(WIDTH if together else (WIDTH, WIDTH), width, **options).train(training)
    attr = torch.randn(edges.size(1), EDGE_WIDTH) if options["edge_dim"] else None
    compare(layer, features(sizes, together), edges, attr, None, weights)


@settings(max_examples=25)
@given(
    graphs(),
    st.fixed_dictionaries(
        {
            "heads": st.integers(1, 4),
            "concat": st.booleans(),
            "bias": st.booleans(),
            "residual": st.booleans(),
            "share_weights": st.booleans(),
            "add_self_loops": st.booleans(),
            "negative_slope": st.sampled_from([0.2, 0.0, 0.7]),
            "dropout": st.sampled_from([0.0, 0.4]),
            "edge_dim": st.sampled_from([None, EDGE_WIDTH]),
            "fill_value": st.sampled_from(["mean", 0.5]),
        }
    ),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_gatv2_conv(
    graph: tuple[Tensor, tuple[int, int]],
    options: dict[str, Any],
    width: int,
    weights: bool,
    training: bool,
) -> None:
    edges, sizes = graph
    torch.manual_seed(edges.size(1))
    together = sizes[0] == sizes[1]
    if not together:
        # PyG takes the mean over the edges into nodes that are sources too, and finds others
        options = options | {"fill_value": 0.5}
    # masks of dropout differ
    training = training and options["dropout"] == 0
    layer = GATv2Conv(WIDTH if together else (WIDTH, WIDTH), width, **options).train(training)
    attr = torch.randn(edges.size(1), EDGE_WIDTH) if options["edge_dim"] else None
    compare(layer, features(sizes, together), edges, attr, True if weights else None)


@settings(max_examples=30)
@given(
    graphs(bipartite=False),
    st.fixed_dictionaries(
        {
            "alpha": st.sampled_from([0.1, 0.5]),
            "cached": st.booleans(),
            "add_self_loops": st.booleans(),
            "normalize": st.booleans(),
        }
    ),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_appnp(
    graph: tuple[Tensor, tuple[int, int]],
    options: dict[str, Any],
    steps: int,
    both_ways: bool,
    weighted: bool,
) -> None:
    edges, (nodes, _) = graph
    torch.manual_seed(edges.size(1))
    if both_ways and edges.numel():
        edges = to_undirected(edges, num_nodes=nodes)
    # a weight that requires a gradient would go to PyG's own forward
    weight = torch.rand(edges.size(1)) + 0.1 if weighted else None
    if not options["normalize"]:
        # sums of weights above 1 grow with every sweep
        weight = torch.rand(edges.size(1)) / (1 + edges.size(1))
    layer = APPNP(steps, **options)
    twin = twin_of(layer)
    x = torch.randn(nodes, 4)
    for _ in range(2):
        expected, actual = (results(Weighted(each, weight), (x, edges)) for each in (layer, twin))
        for name, value in actual.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


class Weighted(nn.Module):
    """Calls a layer with a constant weight of edges."""

    def __init__(self, layer: nn.Module, weight: Tensor | None) -> None:
        super().__init__()
        self.layer, self.weight = layer, weight

    def forward(self, x: Tensor, edges: Tensor) -> Any:
        return self.layer(x, edges, self.weight)


EDGES = random_edges("power_law", 20, 90, seed=1)
LAYERS = {
    "transformer": lambda: TransformerConv(WIDTH, 4, heads=2),
    "gat": lambda: GATConv(WIDTH, 4, heads=2),
    "gatv2": lambda: GATv2Conv(WIDTH, 4, heads=2),
    "appnp": lambda: APPNP(3, 0.2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_edge_index_object_is_taken(name: str) -> None:
    edges = EdgeIndex(EDGES, sparse_size=(20, 20)).sort_by("col").values
    layer = LAYERS[name]()
    assert_same(layer, twin_of(layer), (torch.randn(20, WIDTH), edges))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_matrix_is_taken(name: str, layout: torch.layout) -> None:
    matrix = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(90), (20, 20)).coalesce()
    if layout == torch.sparse_csr:
        matrix = matrix.to_sparse_csr()
    layer = LAYERS[name]()
    if name in ("gat", "gatv2"):
        # PyG cannot add self loops to these
        layer.add_self_loops = False
    x = torch.randn(20, WIDTH)
    torch.testing.assert_close(twin_of(layer)(x, matrix), layer(x, matrix), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "gat", "gatv2"])
def test_dropout_keeps_the_expected_output(name: str) -> None:
    layer = LAYERS[name]()
    layer.dropout = 0.4
    twin, copies = twin_of(layer).train(), 2000
    x = torch.randn(20, WIDTH)
    many = EDGES.repeat(1, copies) + 20 * torch.arange(copies).repeat_interleave(90)
    with torch.no_grad():
        draws = twin(x.repeat(copies, 1), many).view(copies, 20, -1)
        expected = layer.eval()(x, EDGES)
    gap = (draws.mean(0) - expected).abs()
    assert bool((draws.std(0) > 0).any())
    assert bool((gap <= 5 * draws.std(0) / copies**0.5 + 1e-5).all())


def test_appnp_that_drops_edges_in_training_is_handed_over() -> None:
    layer = APPNP(3, 0.2, dropout=0.5)
    twin = APPNP(3, 0.2, dropout=0.5)
    (change,) = gtkern.accelerate(twin).replaced
    assert "training" in change.note
    x = torch.randn(20, 4)
    outs = []
    for each in (layer, twin):
        torch.manual_seed(3)
        outs.append(each(x, EDGES))
    assert torch.equal(*outs)
    torch.testing.assert_close(twin.eval()(x, EDGES), layer.eval()(x, EDGES))


def test_a_lazy_layer_is_taken() -> None:
    torch.manual_seed(0)
    layer = TransformerConv(-1, 4, heads=2, edge_dim=-1)
    gtkern.accelerate(layer)
    x, attr = torch.randn(20, WIDTH), torch.randn(90, EDGE_WIDTH)
    first = layer(x, EDGES, attr)
    torch.testing.assert_close(layer(x, EDGES, attr), first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "gat", "gatv2"])
def test_autocast_gives_the_dtype_of_the_layer(name: str) -> None:
    layer = LAYERS[name]()
    x = torch.randn(20, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = layer(x, EDGES), twin_of(layer)(x, EDGES)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("name", ["transformer", "gatv2"])
def test_a_compiled_model_gives_the_same(name: str) -> None:
    torch._dynamo.reset()
    layer = LAYERS[name]()
    if name == "gatv2":
        # PyG makes the edges anew, and breaks the graph too
        layer.add_self_loops = False
    x = torch.randn(20, WIDTH)
    expected = layer(x, EDGES)
    gtkern.accelerate(layer)
    whole = torch.compile(layer, backend="eager", fullgraph=True)
    with gtkern.nn.with_graph(layer, Graph.from_edge_index(EDGES, 20)):
        torch.testing.assert_close(whole(x, EDGES), expected, rtol=1e-5, atol=1e-6)
    parts = torch.compile(layer, backend="eager")
    torch.testing.assert_close(parts(x, EDGES), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "gat", "gatv2"])
def test_small_calls_are_the_layers_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, x = twin_of(LAYERS[name]()), torch.randn(20, WIDTH)

    def computed(*arguments: Any, **named: Any) -> None:
        raise AssertionError("computed")

    for op in ("sparse_attention", "additive_attention"):
        monkeypatch.setattr(gtkern.ops, op, computed)
    kind: Any = type(twin)
    size = 90 * (2 * 4 + kind.overhead)
    monkeypatch.setattr(kind, "fewest", size + 1)
    twin(x, EDGES)
    monkeypatch.setattr(kind, "fewest", size)
    with pytest.raises(AssertionError, match="computed"):
        twin(x, EDGES)
    (change,) = gtkern.accelerate(LAYERS[name]()).replaced
    assert "the old way in calls of fewer than 90 edges" in change.note


def test_new_edges_of_few_channels_are_gatv2s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    twin, x, calls = twin_of(LAYERS["gatv2"]()), torch.randn(20, WIDTH), []
    attend = gtkern.ops.additive_attention
    monkeypatch.setattr(
        gtkern.ops,
        "additive_attention",
        lambda *given, **named: calls.append(1) or attend(*given, **named),
    )
    for narrow, expected in ((8, 1), (9, 1), (9, 2)):
        monkeypatch.setattr(type(twin), "narrow", narrow)
        twin(x, EDGES.clone() if narrow == 8 else EDGES)
        assert len(calls) == expected


def test_features_of_few_channels_are_gatv2s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = twin_of(GATv2Conv(WIDTH, 4, heads=2, edge_dim=EDGE_WIDTH))
    x, attr = torch.randn(20, WIDTH), torch.randn(90, EDGE_WIDTH)
    expected = twin(x, EDGES, attr)

    def computed(*arguments: Any, **named: Any) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(gtkern.ops, "additive_attention", computed)
    monkeypatch.setattr(type(twin), "narrow", 9)
    torch.testing.assert_close(twin(x, EDGES, attr), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(type(twin), "narrow", 8)
    with pytest.raises(AssertionError, match="computed"):
        twin(x, EDGES, attr)


def test_message_hooks_still_see_messages() -> None:
    layer = TransformerConv(WIDTH, 4)
    gtkern.accelerate(layer)
    seen: list[int] = []
    layer.register_message_forward_hook(lambda module, given, out: seen.append(len(out)))
    layer(torch.randn(20, WIDTH), EDGES)
    assert seen == [90]


def test_new_edges_of_a_small_call_are_appnps_own(monkeypatch: pytest.MonkeyPatch) -> None:
    twin, x, calls = twin_of(LAYERS["appnp"]()), torch.randn(20, WIDTH), []
    swept = gtkern.ops.propagate
    monkeypatch.setattr(APPNP_TWIN, "fewest", 90 * WIDTH * 3 + 1)
    monkeypatch.setattr(
        gtkern.ops, "propagate", lambda *given, **named: calls.append(1) or swept(*given, **named)
    )
    for expected in (0, 1, 2):
        twin(x, EDGES)
        assert len(calls) == expected
    twin(x, EDGES.clone())
    assert len(calls) == 2
    monkeypatch.setattr(APPNP_TWIN, "fewest", 90 * WIDTH * 3)
    twin(x, EDGES.clone())
    assert len(calls) == 3
