"""accelerate, restore, with_graph, and what a twin keeps of its layer."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch_geometric
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATv2Conv, GCNConv, TransformerConv

import gtkern
from gtkern import Graph
from gtkern.nn.dropin.graphs import GraphCache
from gtkern.testing import random_edges
from tests.nn.twins import is_twin

pytestmark = pytest.mark.usefixtures("of_any_size")

EDGES = random_edges("uniform", 12, 40, seed=2)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = TransformerConv(4, 3, heads=2)
        self.second = TransformerConv(6, 4)
        self.plain = GCNConv(4, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = self.second(self.first(x, edge_index).relu(), edge_index)
        out: Tensor = self.plain(hidden, edge_index)
        return out


class Derived(TransformerConv):
    def forward(self, *arguments: Any, **named: Any) -> Any:
        return 2 * super().forward(*arguments, **named)


def test_the_report_names_every_layer_that_has_or_might_have_a_twin() -> None:
    model = nn.ModuleDict(
        {
            "a": TransformerConv(4, 3),
            "b": TransformerConv(4, 3, aggr="max"),
            "c": Derived(4, 3),
            "d": GATv2Conv(4, 3),
            "e": GCNConv(4, 3),
        }
    )
    report = gtkern.accelerate(model)
    assert [change.name for change in report.replaced] == ["a", "d"]
    assert {change.name: change.note.split()[0] for change in report.left} == {
        "b": "aggr='max';",
        "c": "derived",
    }
    assert "c: Derived: derived from TransformerConv" in str(report)
    assert gtkern.accelerate(model).left[0].note == "a twin already"


def test_restore_undoes_accelerate() -> None:
    model = Network()
    before = {name: (type(layer), vars(layer).keys()) for name, layer in model.named_modules()}
    parameters = dict(model.named_parameters())
    gtkern.accelerate(model)
    assert is_twin(model.first)
    assert all(parameters[name] is value for name, value in model.named_parameters())
    assert gtkern.restore(model) == 2
    assert before == {
        name: (type(layer), vars(layer).keys()) for name, layer in model.named_modules()
    }


def test_libraries_are_left_as_they_are() -> None:
    model = Network()  # PyG writes methods into a class when the first of it is made
    before = dict(vars(TransformerConv))
    gtkern.accelerate(model)
    model(torch.randn(12, 4), EDGES)
    gtkern.nn.TransformerConv(4, 3)(torch.randn(12, 4), EDGES)
    assert dict(vars(TransformerConv)) == before


def test_state_dicts_load_both_ways() -> None:
    x = torch.randn(12, 4)
    model, twin = Network(), Network()
    gtkern.accelerate(twin)
    assert list(model.state_dict()) == list(twin.state_dict())
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(x, EDGES), model(x, EDGES), rtol=1e-5, atol=1e-6)
    other = Network()
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other(x, EDGES), model(x, EDGES))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_a_twin_can_be_copied(way: str) -> None:
    model, x = Network(), torch.randn(12, 4)
    gtkern.accelerate(model)
    expected = model(x, EDGES)
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert is_twin(other.first)
    assert other.first.graphs is other.second.graphs
    assert other.first.graphs is not model.first.graphs
    assert torch.equal(other(x, EDGES), expected)


def test_a_twin_made_by_itself_has_the_layers_parameters() -> None:
    torch.manual_seed(5)
    layer = TransformerConv(4, 3, heads=2, edge_dim=2, beta=True)
    torch.manual_seed(5)
    twin = gtkern.nn.TransformerConv(4, 3, heads=2, edge_dim=2, beta=True)
    for (name, value), (other_name, other) in zip(
        layer.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(value, other)


@pytest.mark.parametrize("name", ["TransformerConv", "GATConv", "GATv2Conv", "APPNP"])
def test_a_twin_made_by_itself_knows_the_layers_own_way(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getattr(gtkern.nn, name), "fewest", 10**9)
    options = {"K": 2, "alpha": 0.1, "dropout": 0.5} if name == "APPNP" else {"heads": 2}
    sizes = () if name == "APPNP" else (4, 3)
    twin = getattr(gtkern.nn, name)(*sizes, **options)
    layer = getattr(torch_geometric.nn, name)(*sizes, **options)
    layer.load_state_dict(twin.state_dict())
    x, outs = torch.randn(12, 4), []
    for each in (twin, pickle.loads(pickle.dumps(twin)), layer):
        torch.manual_seed(1)
        outs.append(each(x, EDGES))
    assert torch.equal(outs[0], outs[2])
    assert torch.equal(outs[1], outs[2])


def test_edges_are_grouped_once_for_all_layers_and_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = []
    group = Graph.from_edge_index.__func__

    def counted(cls: type[Graph], *arguments: Any, **named: Any) -> Graph:
        grouped.append(1)
        return group(cls, *arguments, **named)

    monkeypatch.setattr(Graph, "from_edge_index", classmethod(counted))
    model = Network()
    gtkern.accelerate(model)
    for _ in range(3):
        model(torch.randn(12, 4), EDGES)
    assert len(grouped) == 1


def test_edges_changed_in_place_are_seen() -> None:
    model, edges, x = Network(), EDGES.clone(), torch.randn(12, 4)
    twin = copy.deepcopy(model)
    gtkern.accelerate(twin)
    twin(x, edges)
    edges[0] = edges[0].roll(1)
    torch.testing.assert_close(twin(x, edges), model(x, edges), rtol=1e-5, atol=1e-6)


def test_graphs_of_dead_edges_are_forgotten() -> None:
    cache = GraphCache()
    for seed in range(40):
        cache.graph(random_edges("uniform", 12, 40, seed=seed), (12, 12))
    assert len(cache._entries) <= 2


def test_what_inference_mode_made_trains_later() -> None:
    model, x = Network(), torch.randn(12, 4)
    gtkern.accelerate(model)
    with torch.inference_mode():
        first = model(x, EDGES)
    out = model(x, EDGES)
    out.sum().backward()
    assert torch.equal(out, first)
    assert model.first.lin_key.weight.grad is not None


def test_with_graph_stands_for_any_edge_index() -> None:
    model, x = Network(), torch.randn(12, 4)
    expected = model(x, EDGES)
    gtkern.accelerate(model)
    with gtkern.nn.with_graph(model, Graph.from_edge_index(EDGES, 12)):
        for _ in range(2):
            out = model(x, EDGES.clone())
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match=r"edge_index must be that of the graph .* 39 edges"):
            model(x, EDGES[:, 1:])
    assert model.first.graphs.pinned is None


def test_a_batch_of_graphs_is_taken() -> None:
    graphs = [Data(x=torch.randn(12, 4), edge_index=EDGES) for _ in range(3)]
    batch = Batch.from_data_list(graphs)
    model = Network()
    expected = torch.cat([model(graph.x, graph.edge_index) for graph in graphs])
    gtkern.accelerate(model)
    torch.testing.assert_close(model(batch.x, batch.edge_index), expected, rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_told() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        gtkern.accelerate({})
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        gtkern.restore({})
    with (
        pytest.raises(ValueError, match="model must have twins"),
        gtkern.nn.with_graph(Network(), Graph.from_edge_index(EDGES, 12)),
    ):
        pass
    with (
        pytest.raises(TypeError, match=r"graph must be a gtkern.Graph .* got Tensor"),
        gtkern.nn.with_graph(Network(), EDGES),
    ):
        pass
