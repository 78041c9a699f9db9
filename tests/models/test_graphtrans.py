"""GraphTrans is what its paper says, whatever the batch."""

from __future__ import annotations

import functools
import math

import plain_models as plain
import pytest
import small_graphs as graphs
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data

from gtkern.models import GraphTrans, GraphTransSettings
from gtkern.nn import TransformerLayer
from gtkern.ragged import Ragged

NODE, EDGE = (4, 3), (3, 2)


def make(*, edges: bool = True, **more: object):
    """A small network and graphs for it."""
    options: dict[str, object] = {"local_layers": 2, **more}
    settings = GraphTransSettings(
        local_width=6,
        width=8,
        heads=2,
        layers=2,
        feedforward=10,
        **options,  # type: ignore[arg-type]
    )
    packed = graphs.random_graphs(node=NODE, edge=EDGE if edges else None)
    GraphTrans.encode(packed, settings)
    model = GraphTrans(NODE, 2, settings, edge_features=EDGE if edges else None)
    return graphs.settle(model), packed, settings


def plain_graphtrans(settings: GraphTransSettings, p: dict[str, Tensor], data: Data) -> Tensor:
    x = plain.features(p, "node_encoder", data.x, NODE)
    virtual = p["local.virtual_node"][0] if settings.virtual_node else torch.zeros_like(x[0])
    encoded = x + virtual
    for depth in range(settings.local_layers):
        x = heard = x + virtual
        edge = torch.zeros(data.edge_index.size(1), x.size(1), dtype=x.dtype)
        if data.edge_attr is not None:
            edge = plain.features(p, f"local.edge_encoders.{depth}", data.edge_attr, EDGE)
        convolve = plain_gcn if settings.local == "gcn" else plain_gin
        x = convolve(plain.part(p, f"local.convolutions.{depth}"), x, data.edge_index, edge)
        x = plain.batch_norm(p, f"local.norms.{depth}", x)
        if depth < settings.local_layers - 1:
            x = functional.relu(x)
            virtual = plain_virtual(p, depth, virtual + sum(heard)) if settings.virtual_node else 0
    x = torch.cat((encoded, x), dim=1) if settings.jumping == "cat" else x
    x = torch.cat((plain.linear(p, "to_transformer", x), p["token"]))
    x = plain.layer_norm(p, "input_norm", x) if settings.norm_input else x
    for depth in range(settings.layers):
        x = plain.transformer_layer(
            plain.part(p, f"layers.{depth}"),
            x,
            settings.heads,
            norm=settings.norm,
            activation=settings.activation,
        )
    return plain.linear(p, "head", plain.layer_norm(p, "output_norm", x[-1]))


def plain_gin(p: dict[str, Tensor], x: Tensor, edge_index: Tensor, edge: Tensor) -> Tensor:
    total = list((1 + p["eps"]) * x)
    for number, (source, target) in enumerate(edge_index.T.tolist()):
        total[target] = total[target] + functional.relu(x[source] + edge[number])
    hidden = plain.batch_norm(p, "nn.1", plain.linear(p, "nn.0", torch.stack(total)))
    return plain.linear(p, "nn.3", functional.relu(hidden))


def plain_virtual(p: dict[str, Tensor], depth: int, x: Tensor) -> Tensor:
    p = plain.part(p, f"local.virtual_layers.{depth}")
    hidden = functional.relu(plain.batch_norm(p, "1", plain.linear(p, "0", x[None])))
    return functional.relu(plain.batch_norm(p, "4", plain.linear(p, "3", hidden)))[0]


def plain_gcn(p: dict[str, Tensor], x: Tensor, edge_index: Tensor, edge: Tensor) -> Tensor:
    h, pairs = plain.linear(p, "linear", x), edge_index.T.tolist()
    degree = [1 + sum(source == node for source, _ in pairs) for node in range(x.size(0))]
    total = [functional.relu(row + p["root"]) / d for row, d in zip(h, degree, strict=True)]
    for number, (source, target) in enumerate(pairs):
        share = 1 / math.sqrt(degree[source] * degree[target])
        total[target] = total[target] + share * functional.relu(h[source] + edge[number])
    return torch.stack(total)


@pytest.mark.parametrize(
    ("edges", "more"),
    [
        (True, {}),
        (False, {"local": "gcn", "norm": "pre", "activation": "gelu"}),
        (True, {"local": "gcn", "jumping": "cat", "norm_input": False}),
        (False, {"jumping": "cat"}),
        (True, {"jumping": "cat", "virtual_node": True, "local_layers": 3}),
        (False, {"local": "gcn", "virtual_node": True, "local_layers": 1}),
    ],
)
def test_outputs_and_gradients_are_those_of_the_equations(
    edges: bool, more: dict[str, object]
) -> None:
    model, packed, settings = make(edges=edges, **more)
    graphs.check_equal(model, packed, functools.partial(plain_graphtrans, settings))


@pytest.mark.parametrize("local", ["gin", "gcn"])
@pytest.mark.parametrize("virtual_node", [False, True])
def test_a_graph_does_not_depend_on_its_batch(local: str, virtual_node: bool) -> None:
    model, packed, _ = make(local=local, virtual_node=virtual_node)
    graphs.check_batches(model, packed)
    graphs.check_pyg_batches(model, packed)


def test_the_state_makes_the_network() -> None:
    model, packed, settings = make()
    graphs.check_state(model, GraphTrans(NODE, 2, settings, edge_features=EDGE), packed)


@pytest.mark.parametrize("local", ["gin", "gcn"])
@pytest.mark.parametrize("virtual_node", [False, True])
def test_every_parameter_learns(local: str, virtual_node: bool) -> None:
    model, packed, _ = make(local=local, virtual_node=virtual_node)
    graphs.check_learns(model, packed)


@pytest.mark.parametrize(("norm", "activation"), [("post", "relu"), ("pre", "gelu")])
def test_a_layer_is_that_of_torch(norm: str, activation: str) -> None:
    ours = TransformerLayer(8, 2, 12, norm=norm, activation=activation).double()
    theirs = nn.TransformerEncoderLayer(
        8, 2, 12, 0.0, activation, norm_first=norm == "pre", batch_first=True
    ).double()
    names = {
        "attention": theirs.self_attn,
        "attention_norm": theirs.norm1,
        "widen": theirs.linear1,
        "narrow": theirs.linear2,
        "output_norm": theirs.norm2,
    }
    for name, module in names.items():
        getattr(ours, name).load_state_dict(module.state_dict())
    x = torch.randn(6, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(x[None])[0]
        torch.testing.assert_close(ours(x, Ragged.from_ptr(torch.tensor([0, 6]))), expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("heads", 3, "heads must divide width 128 into heads of at most 256, got 3"),
        ("local_layers", 0, "local_layers must be at least 1, got 0"),
        ("feedforward", 0, "feedforward must be at least 1, got 0"),
        ("local", "gat", "local must be one of gcn, gin, got 'gat'"),
        ("jumping", "sum", "jumping must be one of cat, last, got 'sum'"),
        ("norm", "none", "norm must be one of post, pre, got 'none'"),
        ("activation", "silu", "activation must be one of gelu, relu, got 'silu'"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        ("local_dropout", -1.0, r"local_dropout must be in \[0, 1\), got -1.0"),
    ],
)
def test_bad_settings_are_named(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphTransSettings(**{name: value})  # type: ignore[arg-type]


def test_missing_features_of_edges_are_named() -> None:
    model, _, _ = make()
    _, packed, _ = make(edges=False)
    with pytest.raises(ValueError, match=r"data\.edge_attr must be given: the model was made for"):
        model(packed.batch([0]))


@pytest.mark.parametrize("option", ["norm", "activation", "dropout"])
def test_bad_options_of_a_layer_are_named(option: str) -> None:
    wrong = 1.0 if option == "dropout" else "other"
    with pytest.raises(ValueError, match=f"{option} must be"):
        TransformerLayer(8, 2, 8, **{option: wrong})  # type: ignore[arg-type]
