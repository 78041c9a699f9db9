"""GraphGPS is what its paper says, whatever the batch."""

from __future__ import annotations

import functools

import plain_models as plain
import pytest
import small_graphs as graphs
import torch
from torch import Tensor
from torch.nn import functional
from torch_geometric.data import Data

from gtkern.models import GraphGPS, GraphGPSSettings
from gtkern.nn import Prompt
from gtkern.ragged import Ragged

STEPS, NODE, EDGE = 3, (4, 3), (3, 2)


def make(local: str = "gin", *, integers: bool = False, edges: bool = False, **more: object):
    """A small network and graphs for it."""
    settings = GraphGPSSettings(
        width=8,
        heads=2,
        layers=2,
        local=local,
        walk_steps=STEPS,
        **more,  # type: ignore[arg-type]
    )
    node = NODE if integers else 3
    edge = (EDGE if integers else 2) if edges else None
    packed = graphs.random_graphs(node=node, edge=edge)
    GraphGPS.encode(packed, settings)
    model = GraphGPS(node, 2, settings, edge_features=edge)
    return graphs.settle(model), packed, settings


def walks(edge_index: Tensor, nodes: int) -> Tensor:
    """The probabilities of being back after 1 .. STEPS steps of a random walk."""
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
    for source, target in edge_index.T.tolist():
        adjacency[source, target] += 1
    step = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    power, diagonals = torch.eye(nodes, dtype=torch.float64), []
    for _ in range(STEPS):
        power = power @ step
        diagonals.append(power.diagonal())
    return torch.stack(diagonals, dim=1)


def plain_graphgps(settings: GraphGPSSettings, p: dict[str, Tensor], data: Data) -> Tensor:
    x = plain.features(p, "node_encoder", data.x, NODE)
    walk = walks(data.edge_index, data.x.size(0))
    torch.testing.assert_close(data.random_walk.double(), walk, rtol=0, atol=1e-6)
    # the encoding is kept in float32
    x = x + plain.linear(p, "walk_encoder", data.random_walk.double())
    edges = data.edge_index.T.tolist()
    edge = None
    if settings.local != "gin" and data.edge_attr is None:
        edge = p["edge_encoder.table.weight"].expand(len(edges), -1)
    elif settings.local != "gin":
        edge = plain.features(p, "edge_encoder", data.edge_attr, EDGE)
    for depth in range(settings.layers):
        q = plain.part(p, f"layers.{depth}")
        if settings.local == "gated_gcn":
            assert edge is not None
            near, edge = plain_gated(q, x, edges, edge)
        else:
            near = x + plain_gin(q, x, edges, edge)
        far = x + plain.attention(q, "attention", x, settings.heads)
        y = plain.batch_norm(q, "local_norm", near) + plain.batch_norm(q, "attention_norm", far)
        hidden = functional.relu(plain.linear(q, "widen", y))
        x = plain.batch_norm(q, "output_norm", y + plain.linear(q, "narrow", hidden))
    total = x.sum(0) if settings.pooling == "add" else x.mean(0)
    return plain.linear(p, "head", total)


def plain_gin(
    p: dict[str, Tensor], x: Tensor, edges: list[list[int]], edge: Tensor | None
) -> Tensor:
    total = list((1 + p["local.convolution.eps"]) * x)
    for number, (source, target) in enumerate(edges):
        message = x[source] if edge is None else functional.relu(x[source] + edge[number])
        total[target] = total[target] + message
    hidden = functional.relu(plain.linear(p, "local.convolution.nn.0", torch.stack(total)))
    return plain.linear(p, "local.convolution.nn.2", hidden)


def plain_gated(
    p: dict[str, Tensor], x: Tensor, edges: list[list[int]], edge: Tensor
) -> tuple[Tensor, Tensor]:
    p = plain.part(p, "local")
    own, value = plain.linear(p, "own", x), plain.linear(p, "value", x)
    coming, going = plain.linear(p, "target", x), plain.linear(p, "source", x)
    numerator = [torch.zeros_like(row) for row in x]
    denominator = [torch.full_like(row, 1e-6) for row in x]
    gates = []
    for number, (source, target) in enumerate(edges):
        gate = plain.linear(p, "edge", edge[number]) + coming[target] + going[source]
        gates.append(gate)
        numerator[target] = numerator[target] + gate.sigmoid() * value[source]
        denominator[target] = denominator[target] + gate.sigmoid()
    new = own + torch.stack(numerator) / torch.stack(denominator)
    new = x + functional.relu(plain.batch_norm(p, "node_norm", new))
    if not gates or "edge_norm.weight" not in p:
        return new, edge
    carried = functional.relu(plain.batch_norm(p, "edge_norm", torch.stack(gates)))
    return new, edge + carried


KINDS = [
    ("gin", False, False),
    ("gin", True, True),
    ("gine", True, True),
    ("gine", False, False),
    ("gated_gcn", False, True),
    ("gated_gcn", True, False),
]


@pytest.mark.parametrize(("local", "integers", "edges"), KINDS)
def test_outputs_and_gradients_are_those_of_the_equations(
    local: str, integers: bool, edges: bool
) -> None:
    model, packed, settings = make(local, integers=integers, edges=edges)
    graphs.check_equal(model, packed, functools.partial(plain_graphgps, settings))


def test_mean_pooling_divides_by_the_nodes() -> None:
    model, packed, settings = make(pooling="mean")
    graphs.check_equal(model, packed, functools.partial(plain_graphgps, settings))


@pytest.mark.parametrize("local", ["gin", "gated_gcn"])
def test_a_graph_does_not_depend_on_its_batch(local: str) -> None:
    model, packed, _ = make(local, edges=True)
    graphs.check_batches(model, packed)
    graphs.check_pyg_batches(model, packed)


def test_the_state_makes_the_network() -> None:
    model, packed, settings = make()
    graphs.check_state(model, GraphGPS(3, 2, settings), packed)


@pytest.mark.parametrize("local", ["gin", "gine", "gated_gcn"])
def test_every_parameter_learns(local: str) -> None:
    model, packed, _ = make(local, edges=True, dropout=0.1)
    graphs.check_learns(model, packed)


def test_a_layer_takes_prefix_tokens() -> None:
    model, packed, settings = make()
    layer, batch = model.layers[0], packed.batch([3])
    x = torch.randn(9, 8, dtype=torch.float64)
    prefix = tuple(torch.randn(5, 2, 4, dtype=torch.float64) for _ in range(2))
    ragged = Ragged.from_ptr(torch.tensor([0, 9]))
    got = layer.attention(x, ragged, (), *prefix)
    state = dict(layer.state_dict())
    expected = plain.attention(state, "attention", x, settings.heads, prefix=prefix)
    torch.testing.assert_close(got, expected)
    out, _ = layer(x, batch.edge_index, None, ragged, Prompt(None, *prefix))
    assert not torch.allclose(out, layer(x, batch.edge_index, None, ragged)[0])


def test_the_attention_can_be_replaced() -> None:
    seen = []

    def attend(q: Tensor, k: Tensor, v: Tensor, ragged: object, **options: object) -> Tensor:
        seen.append(q.shape)
        return v

    _, packed, settings = make()
    GraphGPS(3, 2, settings, attend=attend).double()(packed.batch([0, 1]))
    assert seen == [(8, 2, 4)] * 2


def test_missing_encodings_name_the_call_that_adds_them() -> None:
    model, packed, _ = make()
    batch = packed.batch([0])
    del batch.random_walk
    with pytest.raises(ValueError, match=r"data\.random_walk .*GraphGPS\.encode\(packed"):
        model(batch)


def test_too_short_encodings_are_named() -> None:
    _, packed, _ = make()
    more = GraphGPSSettings(width=8, heads=2, walk_steps=STEPS + 1)
    model = GraphGPS(3, 2, more).double()
    with pytest.raises(ValueError, match=r"data\.random_walk must have shape \[7, 4\], got"):
        model(packed.batch([0]))


def test_features_of_another_kind_are_named() -> None:
    model, _, _ = make()
    _, other, _ = make(integers=True)
    with pytest.raises(ValueError, match=r"data\.x must have shape .* \[7, 3\], got \[7, 2\]"):
        model(other.batch([0]))
    integers, packed, _ = make(integers=True)
    batch = packed.batch([0])
    batch.x[2, 1] = 3
    with pytest.raises(ValueError, match=r"data\.x must be 0 \.\. 2 in column 1, got 3"):
        integers(batch)
    batch.x = batch.x.double()
    with pytest.raises(TypeError, match=r"data\.x must be of integers"):
        integers(batch)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("heads", 3, "heads must divide width 64 into heads of at most 256, got 3"),
        ("layers", 0, "layers must be at least 1, got 0"),
        ("walk_steps", -1, "walk_steps must be at least 0, got -1"),
        ("local", "gat", "local must be one of gated_gcn, gin, gine, got 'gat'"),
        ("norm", "layer", "norm must be one of batch, none, got 'layer'"),
        ("pooling", "max", "pooling must be one of add, mean, got 'max'"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        ("attention_dropout", -0.1, r"attention_dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_settings_are_named(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphGPSSettings(**{name: value})  # type: ignore[arg-type]


def test_the_base_network_of_gtsp_has_its_size() -> None:
    # 37 one-hot node labels of NCI1 and 2 classes; GTSP's code, layer by layer
    layer = 2 * (64 * 64 + 64) + 4 * (64 * 64 + 64) + 2 * 64 * 128 + 128 + 64 + 3 * 128
    expected = (37 * 64 + 64) + (20 * 64 + 64) + 4 * layer + 2 * 64 + 2
    model = GraphGPS(37, 2)
    assert sum(p.numel() for p in model.parameters()) == expected
