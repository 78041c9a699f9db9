"""LiGhT is what its paper says, whatever the batch."""

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
from gtkern.models import LiGhT, LiGhTSettings

NODE, EDGE = (4, 3), (3, 2)
VIRTUAL = {"fingerprint": 5, "descriptors": 3}


def make(*, virtual: tuple[str, ...] = (), edges: bool = True, **more: object):
    """A small network and graphs for it."""
    sizes = {f"{name.rstrip('s')}_features": VIRTUAL[name] for name in virtual}
    settings = LiGhTSettings(
        width=8,
        heads=2,
        layers=2,
        path_width=4,
        head_width=6,
        **{"path_length": 4, **sizes, **more},  # type: ignore[arg-type]
    )
    packed = graphs.random_graphs((7, 1, 4, 12, 2), node=NODE, edge=EDGE if edges else None)
    LiGhT.encode(packed, settings)
    for name in virtual:
        values = torch.randn(len(packed), VIRTUAL[name], dtype=torch.float64)
        packed.add(name, values, torch.arange(len(packed) + 1))
    model = LiGhT(NODE, 2, settings, edge_features=EDGE if edges else None)
    return graphs.settle(model), packed, settings


def mlp(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return plain.linear(p, f"{name}.2", functional.gelu(plain.linear(p, f"{name}.0", x)))


def plain_light(settings: LiGhTSettings, p: dict[str, Tensor], data: Data) -> Tensor:
    nodes, length = data.x.size(0), settings.path_length
    edges = data.edge_index.T.tolist()
    bonds = sorted({(min(edge), max(edge)) for edge in edges})
    x = plain.features(p, "triplets.node_encoder", data.x, NODE)
    triplets = []
    for a, b in bonds:
        bond = p["triplets.edge_encoder.table.weight"][0]
        if data.edge_attr is not None:
            number = min(edges.index([a, b]), edges.index([b, a]))
            bond = plain.features(
                p, "triplets.edge_encoder", data.edge_attr[number : number + 1], EDGE
            )[0]
        triplets.append(torch.cat((x[a] + x[b], bond)))
    for node in sorted(set(range(nodes)) - {node for bond in bonds for node in bond}):
        alone = torch.cat((x[node] + p["triplets.virtual_atom"][0], p["triplets.virtual_bond"][0]))
        triplets.append(alone)
    rows = [mlp(p, "triplets.mix", row) for row in triplets]
    count = len(rows)
    rows += [mlp(p, f"virtual.{name}", data[name][0]) for name in settings.virtual]
    h = torch.stack(rows)

    # from the key on: which triplets, at which places, of which kind
    paths: dict[tuple[int, int], tuple[list[tuple[int, int]], int]] = {}
    for i in range(len(rows)):
        paths[i, i] = ([(0, i), (length - 1, i)], 0)
    for (i, one), (j, other) in itertools.permutations(enumerate(bonds), 2):
        if set(one) & set(other):
            paths[j, i] = ([(0, i), (length - 1, j)], 1)
    path = plain.walk(data.edge_index, nodes)
    for query_atom, key_atom in itertools.permutations(range(nodes), 2):
        found = path(query_atom, key_atom)
        if found is None or not 3 <= len(found) <= length:
            continue
        along = [bonds.index((min(edges[e]), max(edges[e]))) for e in reversed(found)]
        places = [*enumerate(along[:-1]), (length - 1, along[-1])]
        assert (along[-1], along[0]) not in paths
        paths[along[-1], along[0]] = (places, len(found) - 1)
    for v, i in itertools.product(range(count, len(rows)), range(count)):
        paths[v, i] = ([(0, i), (length - 1, v)], length)
        paths[i, v] = ([(0, v), (length - 1, i)], length)

    away = torch.full((settings.heads,), -torch.inf, dtype=h.dtype)
    bias = [[away] * len(rows) for _ in rows]
    for (query, key), (places, kind) in paths.items():
        mean = sum(mlp(p, f"bias.places.{place}", h[row]) for place, row in places) / len(places)
        of_distance = mlp(p, "bias.by_distance", p["bias.distance.weight"][kind])
        bias[query][key] = of_distance + mlp(p, "bias.by_path", mean)
    stacked = torch.stack([torch.stack(row) for row in bias]).permute(2, 0, 1)
    for depth in range(settings.layers):
        h = plain.transformer_layer(
            plain.part(p, f"layers.{depth}"),
            h,
            settings.heads,
            norm="pre",
            activation="gelu",
            bias=stacked,
            scale=settings.width**-0.5,
        )
    vector = torch.cat([*h[count:], h[:count].mean(0)])
    return plain.linear(p, "head.3", functional.gelu(plain.linear(p, "head.0", vector)))


@pytest.mark.parametrize(
    ("virtual", "edges", "length"),
    [
        ((), True, 4),
        (("fingerprint",), False, 2),
        (("fingerprint", "descriptors"), True, 5),
        (("descriptors",), True, 3),
    ],
)
def test_outputs_and_gradients_are_those_of_the_equations(
    virtual: tuple[str, ...], edges: bool, length: int
) -> None:
    model, packed, settings = make(virtual=virtual, edges=edges, path_length=length)
    graphs.check_equal(model, packed, functools.partial(plain_light, settings))


def test_a_graph_does_not_depend_on_its_batch() -> None:
    model, packed, _ = make(virtual=("fingerprint", "descriptors"))
    graphs.check_batches(model, packed)
    graphs.check_pyg_batches(model, packed)


def test_the_state_makes_the_network() -> None:
    model, packed, settings = make()
    graphs.check_state(model, LiGhT(NODE, 2, settings, edge_features=EDGE), packed)


def test_every_parameter_learns() -> None:
    model, packed, _ = make(virtual=("fingerprint",))
    graphs.check_learns(model, packed)


def test_all_graphs_at_once_are_encoded_as_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, settings = make()
    monkeypatch.setattr("gtkern.models.chunks._PAIRS", 20)
    _, pieces, _ = make()
    assert whole.arrays.keys() == pieces.arrays.keys() == set(LiGhT.encodings(settings))
    for name, values in whole.arrays.items():
        assert torch.equal(values, pieces.arrays[name]), name


def test_the_order_of_the_edges_does_not_matter() -> None:
    model, packed, settings = make()
    order = torch.cat(
        [torch.randperm(int(e - b)) + b for b, e in itertools.pairwise(packed.edge_ptr)]
    )
    turned = PackedGraphs(
        packed.x,
        packed.edge_index[:, order],
        packed.node_ptr,
        packed.edge_ptr,
        edge_attr=packed.edge_attr[order],
        node_categories=NODE,
        edge_categories=EDGE,
    )
    LiGhT.encode(turned, settings)
    with torch.no_grad():
        outs = [model(graph.batch(range(5))) for graph in (packed, turned)]
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)


def test_atoms_alone_and_no_graphs_at_all_are_encoded() -> None:
    settings = LiGhTSettings(width=8, heads=2, layers=1)
    alone = Data(x=torch.ones(2, 1), edge_index=torch.empty(2, 0, dtype=torch.int64))
    packed = PackedGraphs.from_data_list([alone])
    LiGhT.encode(packed, settings)
    batch = packed.batch([0])
    assert batch.light_atoms.tolist() == [[0, -1], [1, -1]]
    assert batch.light_pairs.tolist() == [True, False, False, True]
    assert LiGhT(1, 1, settings)(batch).shape == (1, 1)
    empty = PackedGraphs(
        torch.empty(0, 1),
        torch.empty(2, 0, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
    )
    LiGhT.encode(empty, settings)
    assert empty.arrays["light_paths"].shape == (0, 5)


def test_edges_from_a_node_to_itself_name_the_graph() -> None:
    loop = Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0, 1, 1], [1, 0, 1]]))
    fine = Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0, 1], [1, 0]]))
    packed = PackedGraphs.from_data_list([fine, loop])
    with pytest.raises(ValueError, match="no edge from a node to itself, got one in graph 1"):
        LiGhT.encode(packed, LiGhTSettings())


def test_missing_encodings_name_the_call_that_adds_them() -> None:
    model, packed, _ = make(virtual=("fingerprint",))
    for name in LiGhT.encodings(model.settings):
        batch = packed.batch([0])
        del batch[name]
        with pytest.raises(ValueError, match=rf"data\.{name} .*LiGhT\.encode\(packed"):
            model(batch)
    batch = packed.batch([0])
    batch.fingerprint = batch.fingerprint[:, 1:]
    with pytest.raises(ValueError, match=r"data\.fingerprint must have shape .* \[1, 5\], got"):
        model(batch)
    del batch.fingerprint
    with pytest.raises(ValueError, match=r'fingerprint must be .*packed\.add\("fingerprint", '):
        model(batch)


def test_encodings_of_other_settings_are_named() -> None:
    model, _, _ = make()
    _, packed, _ = make(path_length=3)
    with pytest.raises(ValueError, match=r"data\.light_paths must have shape .* 4\], got"):
        model(packed.batch([0]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("heads", 5, "heads must divide width 768 into heads of at most 256, got 5"),
        ("layers", 0, "layers must be at least 1, got 0"),
        ("path_length", 1, "path_length must be at least 2, got 1"),
        ("path_width", 0, "path_width must be at least 1, got 0"),
        ("fingerprint_features", -1, "fingerprint_features must be at least 0, got -1"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        ("initial_std", -0.1, "initial_std must be above 0 and finite, got -0.1"),
    ],
)
def test_bad_settings_are_named(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LiGhTSettings(**{name: value})  # type: ignore[arg-type]
