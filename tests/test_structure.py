"""Structure of packed graphs: networkx agrees, with native code and without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

from gtkern.transforms import (
    degrees,
    hop_distances,
    random_walk_encoding,
    shortest_path_edges,
    structure,
)


@pytest.fixture(params=["native", "numpy"])
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on each of the two implementations."""
    if request.param == "numpy":
        monkeypatch.setattr(structure, "_native", None)
    elif structure._native is None:
        pytest.skip("gtkern._graph was not built")
    return str(request.param)


SIZES = (5, 1, 0, 12, 2, 7, 0)


def packed(
    seed: int = 0, sizes: tuple[int, ...] = SIZES, degree: int = 2, undirected: bool = False
) -> tuple[Tensor, Tensor]:
    """Random graphs with self loops and repeated edges; the edges of all graphs are mixed."""
    generator = torch.Generator().manual_seed(seed)
    ptr = torch.tensor((0, *sizes)).cumsum(0)
    parts = []
    for begin, size in zip(ptr.tolist(), sizes, strict=False):
        edges = torch.randint(max(size, 1), (2, degree * size), generator=generator) + begin
        parts.append(torch.cat((edges, edges.flip(0)), dim=1) if undirected else edges)
    edge_index = torch.cat(parts, dim=1)
    return edge_index[:, torch.randperm(edge_index.size(1), generator=generator)], ptr


def networks(edge_index: Tensor, ptr: Tensor) -> list[nx.MultiDiGraph]:
    """One graph each, with the numbers of the packed set; the keys of edges are their numbers."""
    graphs = []
    for begin, end in zip(ptr.tolist(), ptr.tolist()[1:], strict=False):
        graph = nx.MultiDiGraph()
        graph.add_nodes_from(range(begin, end))
        for number, (source, target) in enumerate(edge_index.T.tolist()):
            if begin <= source < end:
                graph.add_edge(source, target, number)
        graphs.append(graph)
    return graphs


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("max_hops", [1, 3, 40])
def test_distances_are_those_of_networkx(twin: str, max_hops: int, undirected: bool) -> None:
    edge_index, ptr = packed(1, undirected=undirected, degree=1)
    expected = []
    for graph in networks(edge_index, ptr):
        lengths = dict(nx.all_pairs_shortest_path_length(graph, cutoff=max_hops))
        expected += [lengths[j].get(i, max_hops + 1) for i in graph for j in graph]
    hops = hop_distances(edge_index, ptr, max_hops)
    assert hops.dtype == torch.int16
    assert hops.tolist() == expected


def expected_path(graph: nx.MultiDiGraph, source: int, target: int) -> list[int]:
    """Edges of the path that goes to the lowest nearer node each time, from its end."""
    far = nx.single_target_shortest_path_length(graph, target)
    if source not in dict(far):
        return []
    far, path, at = dict(far), [], source
    while at != target:
        step = min(node for node in graph.successors(at) if far.get(node) == far[at] - 1)
        path.append(min(graph[at][step]))
        at = step
    return path[::-1]


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("max_length", [1, 3, 9])
def test_paths_are_shortest_and_lowest(twin: str, max_length: int, undirected: bool) -> None:
    edge_index, ptr = packed(2, undirected=undirected)
    expected = []
    for graph in networks(edge_index, ptr):
        for i in graph:
            for j in graph:
                path = expected_path(graph, j, i)[:max_length]
                expected.append(path + [-1] * (max_length - len(path)))
    paths = shortest_path_edges(edge_index, ptr, max_length)
    assert paths.dtype == torch.int32
    assert paths.tolist() == expected
    assert int((paths >= 0).sum()) > 50


def test_paths_are_as_long_as_distances(twin: str) -> None:
    edge_index, ptr = packed(3, sizes=(30, 17), degree=1, undirected=True)
    hops = hop_distances(edge_index, ptr, 100)
    length = (shortest_path_edges(edge_index, ptr, 40) >= 0).sum(1)
    assert torch.equal(length[hops <= 100], hops[hops <= 100].long())
    assert int(length[hops > 100].sum()) == 0


@pytest.mark.parametrize("undirected", [False, True])
def test_walks_are_powers_of_the_transition_matrix(twin: str, undirected: bool) -> None:
    edge_index, ptr = packed(4, undirected=undirected)
    expected = []
    for graph in networks(edge_index, ptr):
        nodes = sorted(graph)
        if not nodes:
            continue
        counts = torch.from_numpy(nx.to_numpy_array(graph, nodelist=nodes))
        step = counts / counts.sum(1, keepdim=True).clamp(min=1)
        powers = [torch.linalg.matrix_power(step, t).diagonal() for t in range(1, 8)]
        expected.append(torch.stack(powers, dim=1))
    walks = random_walk_encoding(edge_index, ptr, 7)
    assert walks.dtype == torch.float32
    torch.testing.assert_close(walks, torch.cat(expected).float(), rtol=1e-5, atol=1e-6)


def test_walks_are_those_of_pyg(twin: str) -> None:
    from torch_geometric.data import Data
    from torch_geometric.transforms import AddRandomWalkPE

    edge_index, _ = packed(5, sizes=(90,), undirected=True)
    edge_index = edge_index.unique(dim=1)
    pyg = AddRandomWalkPE(20)(Data(edge_index=edge_index, num_nodes=90)).random_walk_pe
    ours = random_walk_encoding(edge_index, torch.tensor([0, 90]), 20)
    torch.testing.assert_close(ours, pyg, rtol=1e-5, atol=1e-6)


def test_walks_on_a_large_ring(twin: str) -> None:
    node = torch.arange(700)
    half = torch.stack((node, (node + 1) % 700))
    walks = random_walk_encoding(torch.cat((half, half.flip(0)), 1), torch.tensor([0, 700]), 6)
    expected = torch.tensor([0, 1 / 2, 0, 3 / 8, 0, 5 / 16])
    torch.testing.assert_close(walks, expected.expand(700, 6), rtol=1e-6, atol=0)


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hop_distances": lambda edge_index, ptr: hop_distances(edge_index, ptr, 6),
    "shortest_path_edges": lambda edge_index, ptr: shortest_path_edges(edge_index, ptr, 4),
    "random_walk_encoding": lambda edge_index, ptr: random_walk_encoding(edge_index, ptr, 9),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("undirected", [False, True])
def test_native_and_numpy_agree(
    name: str, undirected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if structure._native is None:
        pytest.skip("gtkern._graph was not built")
    graphs = packed(6, sizes=(70, 3, 0, 150, 20), undirected=undirected)
    native = CALLS[name](*graphs)
    monkeypatch.setattr(structure, "_native", None)
    torch.testing.assert_close(native, CALLS[name](*graphs), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CALLS)
def test_bits_do_not_depend_on_threads(name: str) -> None:
    graphs = packed(7, sizes=tuple(range(1, 60)))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(CALLS[name](*graphs))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", CALLS)
def test_a_graph_does_not_depend_on_its_batch_mates(name: str, twin: str) -> None:
    sizes = (6, 9, 4)
    edge_index, ptr = packed(8, sizes=sizes)
    together = CALLS[name](edge_index, ptr)
    mine = (edge_index[0] >= 6) & (edge_index[0] < 15)
    alone = CALLS[name](edge_index[:, mine] - 6, torch.tensor([0, 9]))
    rows = slice(6, 15) if name == "random_walk_encoding" else slice(36, 36 + 81)
    if name == "shortest_path_edges":
        number = torch.cat((mine.nonzero()[:, 0], torch.tensor([-1])))
        alone = number[alone.long()].int()
    assert torch.equal(together[rows], alone)


@pytest.mark.parametrize("ptr", [[0], [0, 0], [0, 1], [0, 0, 3, 3]])
def test_graphs_without_edges(ptr: list[int], twin: str) -> None:
    edge_index, begins = torch.empty(2, 0, dtype=torch.int64), torch.tensor(ptr)
    pairs = int((begins.diff() ** 2).sum())
    hops = hop_distances(edge_index, begins, 5)
    assert hops.tolist() == [0 if pair % 4 == 0 else 6 for pair in range(pairs)]
    assert shortest_path_edges(edge_index, begins, 3).tolist() == [[-1] * 3] * pairs
    assert random_walk_encoding(edge_index, begins, 4).tolist() == [[0] * 4] * ptr[-1]


def test_int32_pointers_and_views_are_taken(twin: str) -> None:
    edge_index, ptr = packed(9)
    strided = edge_index.t().contiguous().t()
    for call in CALLS.values():
        assert torch.equal(call(strided, ptr.int()), call(edge_index, ptr))


def test_degrees_are_those_of_networkx() -> None:
    edge_index, ptr = packed(10)
    graph = nx.compose_all(networks(edge_index, ptr))
    entering, leaving = degrees(edge_index, int(ptr[-1]))
    assert entering.tolist() == [graph.in_degree(node) for node in sorted(graph)]
    assert leaving.tolist() == [graph.out_degree(node) for node in sorted(graph)]


PTR = torch.tensor([0, 3, 5])


def edge(source: int, target: int) -> Tensor:
    return torch.tensor([[0, source], [1, target]])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("edge_index", "ptr", "error", "message"),
    [
        (
            edge(2, 3),
            PTR,
            ValueError,
            r"join nodes of one graph, got 2 -> 3 \(edge 1\) from graph 0 to graph 1",
        ),
        (
            edge(4, 5),
            PTR,
            ValueError,
            r"must be 0 .. 4 \(nodes - 1\), got 4 -> 5 \(edge 1 of graph 1\)",
        ),
        (edge(-1, 9), PTR, ValueError, r"got -1 -> 9 \(edge 1\)"),
        (edge(0, 1).float(), PTR, TypeError, "edge_index must be int64, got torch.float32"),
        (edge(0, 1)[0], PTR, ValueError, r"edge_index must have shape \[2, E\]"),
        ([[0], [1]], PTR, TypeError, "edge_index must be a tensor, got list"),
        (edge(0, 1), [0, 3], TypeError, "ptr must be a tensor, got list"),
        (edge(0, 1), PTR.float(), TypeError, "ptr must be int64, got torch.float32"),
        (edge(0, 1), PTR[None], ValueError, r"ptr must have shape \[G \+ 1\], got \[1, 3\]"),
        (edge(0, 1), torch.tensor([0, 3, 2]), ValueError, r"not fall, got \[0, 3, 2\]"),
        (edge(0, 1), torch.tensor([1, 3]), ValueError, "ptr must begin with 0"),
    ],
)
def test_bad_graphs_are_named(
    name: str, edge_index: Any, ptr: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CALLS[name](edge_index, ptr)


@pytest.mark.parametrize("call", [hop_distances, shortest_path_edges])
def test_a_graph_above_the_cap_is_named(call: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"at most 2 nodes \(max_nodes\).*graph 0 has 3"):
        call(edge(0, 1), PTR, 5, max_nodes=2)
    with pytest.raises(ValueError, match=r"at most 8192 nodes.*graph 1 has 8193"):
        call(edge(0, 1), torch.tensor([0, 3, 8196]), 5)


@pytest.mark.parametrize("call", [hop_distances, shortest_path_edges, random_walk_encoding])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "must be 1 .. 3276., got 0"),
        (40_000, ValueError, "must be 1 .. 3276., got 40000"),
        (2.0, TypeError, "must be an integer, got float"),
    ],
)
def test_bad_lengths_are_named(
    call: Callable[..., Tensor], value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(edge(0, 1), PTR, value)


def test_bad_degrees_are_named() -> None:
    with pytest.raises(ValueError, match=r"must be 0 .. 1 \(num_nodes - 1\), got 2"):
        degrees(edge(0, 2), 2)
    with pytest.raises(TypeError, match="num_nodes must be an integer"):
        degrees(edge(0, 1), 2.0)  # type: ignore[arg-type]
