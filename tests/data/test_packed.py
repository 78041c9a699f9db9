"""Packed graphs: batches are PyG's, orders follow from seed and epoch, files are never half."""

from __future__ import annotations

import copy
import pathlib
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from gtkern.data import PackedGraphs, _segments


@pytest.fixture(params=["native", "torch"])
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on each of the two ways to cut rows."""
    if request.param == "torch":
        monkeypatch.setattr(_segments, "_native", None)
    elif _segments._native is None:
        pytest.skip("gtkern._graph was not built")
    return str(request.param)


def some_graphs(integer: bool = False) -> list[Data]:
    """Graphs of 3, 1, 2, 4 and 0 nodes with 4, 0, 1, 6 and 0 edges."""
    graphs = []
    for number, (nodes, edges) in enumerate(((3, 4), (1, 0), (2, 1), (4, 6), (0, 0))):
        generator = torch.Generator().manual_seed(number)
        x = torch.randint(5, (nodes, 2), generator=generator)
        attr = torch.randint(3, (edges, 3), generator=generator)
        graphs.append(
            Data(
                x=x if integer else x.float(),
                edge_index=torch.randint(max(nodes, 1), (2, edges), generator=generator),
                edge_attr=attr if integer else attr.float(),
                y=torch.tensor([[float(number), float("nan")]]),
            )
        )
    return graphs


def packed(integer: bool = False) -> PackedGraphs:
    """The same, packed, with an array for each kind of pointer."""
    graphs = PackedGraphs.from_data_list(some_graphs(integer))
    nodes = graphs.x.size(0)
    graphs.add("walk", torch.arange(4.0 * nodes).view(nodes, 4), graphs.node_ptr)
    graphs.add("pair_index", torch.arange(30).to(torch.int16), graphs.pair_ptr())
    graphs.add("token_pair", torch.arange(55).to(torch.uint8), graphs.pair_ptr(tokens=1))
    graphs.add("half", torch.arange(11).to(torch.bfloat16), graphs.edge_ptr)
    return graphs


CHOICES = ([3, 0, 2], [1], [4], [0, 1, 2, 3, 4], [2, 2, 4, 2], [])


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("chosen", CHOICES[:-1], ids=str)
def test_a_batch_is_what_pyg_makes_of_the_graphs(
    integer: bool, chosen: list[int], twin: str
) -> None:
    graphs, lists = packed(integer), some_graphs(integer)
    batch = graphs.batch(chosen)
    expected = Batch.from_data_list([lists[number] for number in chosen])
    for name in ("x", "edge_index", "edge_attr", "ptr", "batch"):
        assert torch.equal(batch[name], expected[name]), name
        assert batch[name].dtype == expected[name].dtype
    assert torch.equal(batch.y, expected.y) or torch.equal(batch.y.isnan(), expected.y.isnan())
    assert batch.num_graphs == len(chosen)


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_added_arrays_are_cut_by_their_own_pointers(chosen: list[int], twin: str) -> None:
    graphs = packed()
    batch = graphs.batch(torch.tensor(chosen, dtype=torch.int64))
    for name, ptr in (
        ("walk", graphs.node_ptr),
        ("pair_index", graphs.pair_ptr()),
        ("token_pair", graphs.pair_ptr(1)),
        ("half", graphs.edge_ptr),
    ):
        whole = graphs.arrays[name]
        parts = [whole[int(ptr[number]) : int(ptr[number + 1])] for number in chosen]
        assert torch.equal(batch[name], torch.cat([whole[:0], *parts])), name
        assert batch[name].dtype == whole.dtype


def test_pyg_s_own_loader_gives_the_same_batches() -> None:
    graphs = packed()
    for number, theirs in enumerate(DataLoader(graphs, batch_size=2)):
        ours = graphs.batch(list(range(len(graphs)))[2 * number : 2 * number + 2])
        assert theirs.num_graphs == ours.num_graphs
        for name in set(ours.keys()) - {"num_graphs", "y"}:
            assert torch.equal(theirs[name], ours[name]), name


def test_pair_pointers_count_the_tokens() -> None:
    assert packed().pair_ptr().tolist() == [0, 9, 10, 14, 30, 30]
    assert packed().pair_ptr(1).tolist() == [0, 16, 20, 29, 54, 55]


def test_an_array_of_the_same_name_is_replaced() -> None:
    graphs = packed()
    graphs.add("walk", torch.zeros(10), graphs.node_ptr)
    assert graphs.batch([0]).walk.tolist() == [0, 0, 0]


def test_categories_are_the_largest_values_or_what_was_said() -> None:
    graphs = packed(integer=True)
    assert graphs.node_categories == tuple((graphs.x.amax(0) + 1).tolist())
    assert packed().node_categories == packed().edge_categories == ()
    said = PackedGraphs.from_data_list(
        some_graphs(True), node_categories=(9, 8), edge_categories=(7, 6, 5)
    )
    assert (said.node_categories, said.edge_categories) == ((9, 8), (7, 6, 5))


def test_one_integer_label_a_graph_is_a_class() -> None:
    graphs = some_graphs()
    for number, graph in enumerate(graphs):
        graph.y = torch.tensor([number % 2])
    assert PackedGraphs.from_data_list(graphs).y.tolist() == [0, 1, 0, 1, 0]


def test_graphs_without_labels_and_edge_features() -> None:
    graphs = [Data(x=graph.x, edge_index=graph.edge_index) for graph in some_graphs()]
    batch = PackedGraphs.from_data_list(graphs).batch([3, 0])
    assert batch.edge_attr is None
    assert batch.y.shape == (2, 0)


def order(graphs: PackedGraphs, seed: int, epoch: int) -> list[int]:
    loader = graphs.loader(batch_size=2, shuffle=True, seed=seed)
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [int(label) for batch in loader for label in batch.y[:, 0]]


def test_order_depends_on_seed_and_epoch_only() -> None:
    torch.manual_seed(1)
    first = [order(packed(), 3, epoch) for epoch in range(6)]
    torch.manual_seed(2)
    assert first == [order(packed(), 3, epoch) for epoch in range(6)]
    assert all(sorted(numbers) == [0, 1, 2, 3, 4] for numbers in first)
    assert len({tuple(numbers) for numbers in first}) > 3
    assert first != [order(packed(), 4, epoch) for epoch in range(6)]


def test_a_plain_loop_goes_on_to_the_next_epoch() -> None:
    loader = packed().loader(batch_size=2, shuffle=True, seed=3)
    loops = [[int(label) for batch in loader for label in batch.y[:, 0]] for _ in range(3)]
    assert loops == [order(packed(), 3, epoch) for epoch in range(3)]


def test_lightning_sets_the_epoch() -> None:
    from lightning.fabric.utilities.data import _set_sampler_epoch

    loader = packed().loader(batch_size=2, shuffle=True, seed=3)
    _set_sampler_epoch(loader, 5)
    assert [int(label) for batch in loader for label in batch.y[:, 0]] == order(packed(), 3, 5)


def test_without_shuffling_the_given_order_stays() -> None:
    loader = packed().loader([4, 2, 2, 0, 1], batch_size=3)
    assert len(loader) == 2
    assert [batch.y[:, 0].tolist() for batch in loader] == [[4, 2, 2], [0, 1]]
    loader = packed().loader([4, 2, 2, 0, 1], batch_size=3, drop_last=True)
    assert len(loader) == len(list(loader)) == 1


def test_a_saved_set_comes_back_whole(tmp_path: pathlib.Path) -> None:
    graphs, path = packed(integer=True), tmp_path / "below" / "graphs.safetensors"
    made_by = {"steps": 20, "sizes": (1, 2)}
    graphs.save(path, made_by)
    loaded = PackedGraphs.load(path, made_by)
    assert loaded is not None
    assert loaded.node_categories == graphs.node_categories
    assert loaded.edge_categories == graphs.edge_categories
    ours, theirs = graphs.batch([3, 0]), loaded.batch([3, 0])
    assert set(ours.keys()) == set(theirs.keys())
    for name in set(ours.keys()) - {"num_graphs", "y"}:
        assert torch.equal(ours[name], theirs[name]), name
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_set_made_otherwise_is_not_loaded(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "graphs.safetensors"
    assert PackedGraphs.load(path, {"steps": 20}) is None
    packed().save(path, {"steps": 20})
    assert PackedGraphs.load(path, {"steps": 21}) is None
    assert PackedGraphs.load(path) is None
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert PackedGraphs.load(path, {"steps": 20}) is None
    path.write_bytes(b"something else")
    assert PackedGraphs.load(path, {"steps": 20}) is None


def test_copies_and_pickles_are_whole() -> None:
    for graphs in (pickle.loads(pickle.dumps(packed())), copy.deepcopy(packed())):
        assert torch.equal(graphs.batch([3]).pair_index, packed().batch([3]).pair_index)


def spoil(number: int, name: str, value: Tensor | None) -> list[Data]:
    graphs = some_graphs()
    graphs[number][name] = value
    return graphs


@pytest.mark.parametrize(
    ("graphs", "message"),
    [
        ([], "graphs must have at least one graph"),
        (spoil(2, "x", None), "graph 2: x must be a tensor, got NoneType"),
        (spoil(2, "x", torch.zeros(2)), r"graph 2: x must have shape \[n, F\], got \[2\]"),
        (spoil(2, "x", torch.zeros(2, 3)), "graph 2: x must have 2 columns of torch.float32"),
        (spoil(2, "y", torch.zeros(1)), "graph 2: y must have 2 columns"),
        (spoil(2, "y", None), "graph 2: y must be a tensor, got NoneType"),
        (spoil(3, "edge_attr", None), r"graph 3: edge_attr must have shape \[6, Fe\], got None"),
        (
            spoil(2, "edge_index", torch.tensor([[0], [2]])),
            r"graph 2: edge_index must be 0 .. 1 \(its nodes - 1\), got 2",
        ),
        (
            spoil(2, "edge_index", torch.zeros(2, 1)),
            r"graph 2: edge_index must be int64 \[2, e\], got torch.float32",
        ),
        (spoil(3, "x", torch.full((4, 2), float("nan"))), "x must be finite, got .* in graph 3"),
    ],
)
def test_a_bad_graph_is_named(graphs: list[Data], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PackedGraphs.from_data_list(graphs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.batch([5]), r"indices must be 0 .. 4 \(graphs - 1\), got 5"),
        (lambda g: g.batch([-1]), "got -1"),
        (lambda g: g.batch([0.5]), "indices must be integers"),
        (lambda g: g.batch(torch.ones(5, dtype=torch.bool)), "indices must be integers"),
        (lambda g: g.loader(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda g: g.loader([7], batch_size=1), "indices must be 0 .. 4"),
        (lambda g: g.add("x", g.x, g.node_ptr), "name must be a new attribute's name, got 'x'"),
        (lambda g: g.add("a b", g.x, g.node_ptr), "name must be a new attribute's name"),
        (lambda g: g.add("new", g.x[1:], g.node_ptr), r"ptr must rise from 0 to 9 \(rows\)"),
        (lambda g: g.add("new", g.x, g.node_ptr[[0, 5]]), r"ptr must have shape \[G \+ 1\]"),
        (lambda g: g.add("new", g.x, g.node_ptr.flip(0)), "ptr must rise from 0"),
        (lambda g: g.add("new", g.x, g.node_ptr.float()), "ptr must be int64 on cpu"),
        (
            lambda g: PackedGraphs(g.x, g.edge_index.flip(1), g.node_ptr, g.edge_ptr),
            r"edge_index must stay inside each graph: graph 0 has the nodes 0 .. 2, got the edge",
        ),
        (
            lambda g: PackedGraphs(
                g.x.long(), g.edge_index, g.node_ptr, g.edge_ptr, node_categories=(1, 9)
            ),
            r"x\[:, 0\] must be 0 .. 0, got . in graph",
        ),
    ],
)
def test_bad_arguments_are_named(call: Callable[[PackedGraphs], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(packed())
