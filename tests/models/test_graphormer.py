"""Graphormer is what its paper says, whatever the batch."""

from __future__ import annotations

import functools
import itertools

import plain_models as plain
import pytest
import small_graphs as graphs
import torch
from torch import Tensor
from torch.nn import functional
from torch_geometric.data import Data

from gtkern.data import PackedGraphs
from gtkern.models import Graphormer, GraphormerSettings
from gtkern.nn import distinct_rows, pair_biases
from gtkern.ragged import Ragged

NODE, EDGE = (4, 3), (3, 2)


def make(edge: object = EDGE, **more: object):
    """A small network and graphs for it; `edge`: None, sizes, or a number of one-hot columns."""
    options = {"max_distance": 20, "max_degree": 9, "path_length": 3, **more}
    settings = GraphormerSettings(
        width=8,
        heads=2,
        layers=2,
        feedforward=6,
        **options,  # type: ignore[arg-type]
    )
    one_hot = isinstance(edge, int)
    packed = graphs.random_graphs(node=NODE, edge=(edge,) if one_hot else edge)
    if one_hot:
        values = functional.one_hot(packed.edge_attr[:, 0], edge).double()
        packed = PackedGraphs(
            packed.x, packed.edge_index, packed.node_ptr, packed.edge_ptr, edge_attr=values
        )
    Graphormer.encode(packed, settings)
    model = Graphormer(NODE, 2, settings, edge_features=edge)
    return graphs.settle(model), packed, settings


def plain_bias(settings: GraphormerSettings, p: dict[str, Tensor], data: Data) -> Tensor:
    """[H, n + 1, n + 1], the token first; -inf where a pair does not attend."""
    nodes = data.x.size(0)
    out = [[p["bias.virtual_distance"][0]] * (nodes + 1) for _ in range(nodes + 1)]
    path = plain.walk(data.edge_index, nodes)
    for i, j in itertools.product(range(nodes), range(nodes)):
        found = path(i, j)
        distance = settings.max_distance + 1
        if found is not None:
            distance = min(len(found), distance)
        bias = p["bias.distance"][distance]
        if found and data.edge_attr is not None and settings.path_length:
            kept = found[: settings.path_length]
            for hop, number in enumerate(kept):
                feature = data.edge_attr[number]
                if feature.is_floating_point():
                    mean = feature @ p["bias.edge"]
                else:
                    tables = p["bias.edge"].split(list(EDGE))
                    mean = torch.stack([t[v] for t, v in zip(tables, feature, strict=True)]).mean(0)
                bias = bias + mean @ p["bias.hop"][hop] / len(kept)
        if settings.attend_within is not None and distance >= settings.attend_within:
            bias = torch.full_like(bias, -torch.inf)
        out[i + 1][j + 1] = bias
    return torch.stack([torch.stack(row) for row in out]).permute(2, 0, 1)


def plain_graphormer(settings: GraphormerSettings, p: dict[str, Tensor], data: Data) -> Tensor:
    x, nodes = plain.features(p, "node_encoder", data.x, NODE), data.x.size(0)
    for row, name in enumerate(("out_degree", "in_degree")):
        degree = [int((data.edge_index[row] == node).sum()) for node in range(nodes)]
        x = x + p[f"{name}.weight"][degree]
    x = torch.cat((p["token"], x))
    x = plain.layer_norm(p, "input_norm", x) if settings.norm_input else x
    bias = plain_bias(settings, p, data)
    for depth in range(settings.layers):
        x = plain.transformer_layer(
            plain.part(p, f"layers.{depth}"),
            x,
            settings.heads,
            norm=settings.norm,
            activation=settings.activation,
            bias=bias,
        )
    act = functional.gelu if settings.activation == "gelu" else functional.relu
    x = plain.layer_norm(p, "transform_norm", act(plain.linear(p, "transform", x[0])))
    return plain.linear(p, "head", x)


@pytest.mark.parametrize(
    ("edge", "more"),
    [
        (EDGE, {}),
        (EDGE, {"path_length": 1, "norm": "pre", "activation": "relu"}),
        (3, {"path_length": 2}),
        (None, {}),
        (EDGE, {"path_length": 0, "norm_input": False}),
        (EDGE, {"attend_within": 3}),
        (EDGE, {"max_distance": 3}),
    ],
)
def test_outputs_and_gradients_are_those_of_the_equations(
    edge: object, more: dict[str, object]
) -> None:
    model, packed, settings = make(edge, **more)
    graphs.check_equal(model, packed, functools.partial(plain_graphormer, settings))


def test_a_graph_does_not_depend_on_its_batch() -> None:
    model, packed, _ = make()
    graphs.check_batches(model, packed)
    graphs.check_pyg_batches(model, packed)


def test_numbers_of_nodes_do_not_matter() -> None:
    # of several shortest paths the one by the lowest nodes is taken: on a tree there is but one
    settings = GraphormerSettings(width=8, heads=2, layers=2, feedforward=6, path_length=3)
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3], [1, 4], [4, 5], [5, 6]]).T
    x, kind = torch.randint(3, (7, 1)), torch.randint(4, (6, 1)).repeat(2, 1)
    order = torch.randperm(7)
    place = torch.argsort(order)
    graph = Data(x=x, edge_index=torch.cat((pairs, pairs.flip(0)), 1), edge_attr=kind)
    turned = Data(x=x[order], edge_index=place[graph.edge_index], edge_attr=kind)
    packed = PackedGraphs.from_data_list([graph, turned], edge_categories=[4])
    Graphormer.encode(packed, settings)
    model = graphs.settle(Graphormer((3,), 2, settings, edge_features=(4,)))
    first, second = model(packed.batch([0, 1]))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_the_state_makes_the_network() -> None:
    model, packed, settings = make()
    graphs.check_state(model, Graphormer(NODE, 2, settings, edge_features=EDGE), packed)


def test_every_parameter_learns() -> None:
    model, packed, _ = make(max_distance=5)
    graphs.check_learns(model, packed)


def test_all_graphs_at_once_are_encoded_as_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, settings = make()
    monkeypatch.setattr("gtkern.models.chunks._PAIRS", 20)
    _, pieces, _ = make()
    assert whole.arrays.keys() == pieces.arrays.keys() == set(Graphormer.encodings(settings))
    for name, values in whole.arrays.items():
        assert torch.equal(values, pieces.arrays[name]), name


def test_sizes_are_those_of_the_released_networks() -> None:
    with torch.device("meta"):
        base, slim = Graphormer((8,), 1, GraphormerSettings.base()), Graphormer((8,), 1)
    for network, width in ((base, 768), (slim, 80)):
        layer = 6 * (width * width + width) + 4 * width
        assert sum(p.numel() for p in network.layers.parameters()) == 12 * layer


@pytest.mark.parametrize("sizes", [(5, 4, 3), (2**40, 2**40, 2**40)])
def test_distinct_rows_are_those_of_unique(sizes: tuple[int, ...]) -> None:
    rows = torch.stack([torch.randint(min(size, 3), (200,)) for size in sizes], dim=1)
    expected, number = torch.unique(rows, dim=0, return_inverse=True)
    at, got = distinct_rows(rows, sizes)
    assert torch.equal(rows[at], expected)
    assert torch.equal(got, number)


@pytest.mark.parametrize("rows", [0, 7, 255, 300, 70_000])
def test_tables_of_any_length_are_reached(rows: int) -> None:
    ragged = Ragged.from_ptr(torch.tensor([0, 30, 31]))
    entry = torch.randint(rows, (901,)) if rows else torch.full((901,), -1)
    entry[::7] = -1
    table = torch.randn(rows, 2)
    total, masked = torch.zeros(901, 2), torch.zeros(901, dtype=torch.bool)
    for index, piece in pair_biases(entry, table, ragged):
        wrong = index.index == index.MASKED[index.index.dtype]
        masked |= wrong
        total += piece[index.index.long().masked_fill(wrong, 0)].masked_fill(wrong[:, None], 0)
    assert torch.equal(masked, entry < 0)
    if rows:
        assert torch.equal(total[~masked], table[entry[~masked]])


def test_missing_encodings_name_the_call_that_adds_them() -> None:
    model, packed, _ = make()
    for name in Graphormer.encodings(model.settings):
        batch = packed.batch([0])
        del batch[name]
        with pytest.raises(ValueError, match=rf"data\.{name} .*Graphormer\.encode\(packed"):
            model(batch)


def test_encodings_of_other_settings_are_named() -> None:
    model, _, _ = make()
    _, packed, _ = make(path_length=2)
    with pytest.raises(ValueError, match=r"data\.graphormer_paths must have shape .* 4\], got"):
        model(packed.batch([0]))
    _, packed, _ = make((3, 4))
    with pytest.raises(ValueError, match=r"data\.graphormer_paths must be 0 \.\. 6 .* got"):
        model(packed.batch(range(5)))


def test_too_large_degrees_name_the_graph() -> None:
    with pytest.raises(
        ValueError, match=r"at least the largest degree, got 2: .* graph 3 has in_degree 4"
    ):
        make(max_degree=2)


def test_features_of_edges_that_are_no_categories_name_the_graph() -> None:
    _, packed, settings = make(3)
    packed.edge_attr[int(packed.edge_ptr[3])] = 0.5
    with pytest.raises(ValueError, match=r"edge_attr must be of categories.* in graph 3; path"):
        Graphormer.encode(packed, settings)


def test_too_many_combinations_of_edge_features_are_named() -> None:
    _, packed, settings = make()
    packed.edge_categories = (400, 400)
    with pytest.raises(ValueError, match=r"at most 32766 combinations, got 160000 from the sizes"):
        Graphormer.encode(packed, settings)


def test_initial_weights_have_the_deviations_of_the_settings() -> None:
    settings = GraphormerSettings(layers=1, initial_std=0.3, initial_bias_std=2.0)
    model = Graphormer(NODE, 2, settings, edge_features=EDGE)
    layer = model.layers[0]
    for weight in (layer.attention.in_proj_weight, layer.widen.weight, model.in_degree.weight):
        assert float(weight.std()) == pytest.approx(0.3, rel=0.1)
    assert float(model.bias.distance.std()) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("heads", 3, "heads must divide width 80 into heads of at most 256, got 3"),
        ("layers", 0, "layers must be at least 1, got 0"),
        ("path_length", -1, "path_length must be at least 0, got -1"),
        ("max_distance", 4, "max_distance must be at least 5, got 4"),
        ("max_degree", -1, "max_degree must be at least 0, got -1"),
        ("attend_within", 0, "attend_within must be at least 1, got 0"),
        ("norm", "layer", "norm must be one of post, pre, got 'layer'"),
        ("activation", "silu", "activation must be one of gelu, relu, got 'silu'"),
        ("activation_dropout", 1.0, r"activation_dropout must be in \[0, 1\), got 1.0"),
        ("initial_std", 0.0, "initial_std must be above 0 and finite, got 0.0"),
        ("initial_bias_std", -1.0, "initial_bias_std must be above 0 and finite, got -1.0"),
    ],
)
def test_bad_settings_are_named(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphormerSettings(**{name: value})  # type: ignore[arg-type]
