"""Graph: every accepted form, every promised message, and the layout that kernels rely on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import Tensor

from gtkern import Graph, _native
from gtkern.graph import HEAVY_ROW_EDGES, Adjacency, _group_edges_torch, heavy_items
from gtkern.testing import LAWS, random_edges, random_graph

EDGES = [[2, 0, 1, 2, 0, 2], [1, 1, 0, 1, 2, 1]]


def rows_of(adjacency: Adjacency) -> Tensor:
    """The row of each position."""
    return torch.repeat_interleave(adjacency.ptr.diff())


def ids_of(adjacency: Adjacency) -> Tensor:
    """The caller's number of the edge at each position."""
    if adjacency.edge_id.numel():
        return adjacency.edge_id
    return torch.arange(adjacency.index.numel(), device=adjacency.index.device)


class SparseTensorLike:
    """What torch_sparse.SparseTensor offers of itself: rows are destinations."""

    def __init__(self, row_ptr: Tensor, col: Tensor, sizes: tuple[int, int]) -> None:
        self.row_ptr, self.col, self.sizes = row_ptr, col, sizes

    def csr(self) -> tuple[Tensor, Tensor, None]:
        return self.row_ptr, self.col, None

    def sparse_size(self, axis: int) -> int:
        return self.sizes[axis]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_edge_index_comes_back_in_the_callers_order(
    dtype: torch.dtype, device: torch.device
) -> None:
    edges = torch.tensor(EDGES, dtype=dtype, device=device)
    graph = Graph.from_edge_index(edges, 3)
    assert graph.edge_index().tolist() == EDGES
    assert (graph.num_edges, graph.num_src_nodes, graph.num_dst_nodes) == (6, 3, 3)
    assert graph.device.type == device.type


def test_rows_are_destinations() -> None:
    graph = Graph.from_edge_index(torch.tensor(EDGES), 3)
    assert graph.degree().tolist() == [1, 4, 1]
    assert graph.csr.ptr.tolist() == [0, 1, 5, 6]
    assert sorted(graph.csr.index[1:5].tolist()) == [0, 2, 2, 2]


def test_dtypes_are_those_that_kernels_read() -> None:
    graph = random_graph("uniform", 5, 9, num_edge_types=2, seed=0)
    for adjacency in (graph.csr, graph.csc):
        found = [tensor.dtype for tensor in adjacency]
        assert found == [torch.int64, torch.int32, torch.int64, torch.uint8, torch.int64]
        assert all(tensor.is_contiguous() for tensor in adjacency)


def test_duplicate_edges_stay() -> None:
    graph = Graph.from_edge_index(torch.tensor([[1, 1, 1], [0, 0, 0]]), 2)
    assert graph.degree().tolist() == [3, 0]
    assert graph.csr.index.tolist() == [1, 1, 1]


def test_number_of_nodes_defaults_to_the_largest_index() -> None:
    assert Graph.from_edge_index(torch.tensor([[4], [1]])).num_dst_nodes == 5
    assert Graph.from_edge_index(torch.empty(2, 0, dtype=torch.int64)).num_dst_nodes == 0


def test_bipartite_sizes_may_differ() -> None:
    graph = Graph.from_edge_index(torch.tensor([[6, 0], [1, 0]]), (7, 2))
    assert (graph.num_src_nodes, graph.num_dst_nodes) == (7, 2)
    assert graph.csr.ptr.numel() == 3 and graph.csc.ptr.numel() == 8


@pytest.mark.parametrize("sizes", [0, 4, (3, 0), (0, 3)])
def test_zero_edges(sizes: Any) -> None:
    graph = Graph.from_edge_index(torch.empty(2, 0, dtype=torch.int32), sizes)
    assert graph.num_edges == 0 and graph.edge_index().shape == (2, 0)
    assert graph.csr.ptr.tolist() == [0] * (graph.num_dst_nodes + 1)
    assert graph.csc.ptr.tolist() == [0] * (graph.num_src_nodes + 1)
    assert graph.csr.heavy.shape == (0, 3)


def test_non_contiguous_edges_are_read_as_they_are() -> None:
    edges = torch.tensor(EDGES)
    strided = edges.T.contiguous().T
    assert not strided.is_contiguous()
    assert Graph.from_edge_index(strided, 3).edge_index().tolist() == EDGES


def test_csr_keeps_its_order() -> None:
    graph = Graph.from_csr(torch.tensor([0, 2, 3]), torch.tensor([4, 1, 0]), 5)
    assert graph.edge_index().tolist() == [[4, 1, 0], [0, 0, 1]]
    assert graph.csr.edge_id.numel() == 0
    assert graph.num_src_nodes == 5


def test_graph_is_returned_as_it_is() -> None:
    graph = Graph.from_edge_index(torch.tensor(EDGES), 3)
    assert Graph.from_any(graph) is graph


def _as_edge_index() -> Any:
    return torch.tensor(EDGES)


def _as_pyg_edge_index() -> Any:
    geometric = pytest.importorskip("torch_geometric")
    return geometric.EdgeIndex(EDGES, sparse_size=(3, 3))


def _as_pyg_data() -> Any:
    data = pytest.importorskip("torch_geometric.data")
    return data.Data(edge_index=torch.tensor(EDGES), num_nodes=3)


def _as_csr_pair() -> Any:
    return torch.tensor([0, 1, 5, 6]), torch.tensor([1, 2, 0, 2, 2, 0], dtype=torch.int32)


def _as_sparse_tensor() -> Any:
    return SparseTensorLike(*_as_csr_pair(), (3, 3))


def _as_torch_csr() -> Any:
    row_ptr, col = _as_csr_pair()
    return torch.sparse_csr_tensor(row_ptr, col.long(), torch.ones(6), size=(3, 3))


def _as_torch_coo() -> Any:
    source, destination = torch.tensor(EDGES)
    return torch.sparse_coo_tensor(torch.stack((destination, source)), torch.ones(6), (3, 3))


@pytest.mark.parametrize(
    "form",
    [
        _as_edge_index,
        _as_pyg_edge_index,
        _as_pyg_data,
        _as_csr_pair,
        _as_sparse_tensor,
        _as_torch_csr,
        _as_torch_coo,
    ],
    ids=lambda form: form.__name__.removeprefix("_as_"),
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_every_form_gives_the_same_graph(form: Callable[[], Any]) -> None:
    graph = Graph.from_any(form(), 3)
    assert (graph.num_src_nodes, graph.num_dst_nodes) == (3, 3)
    found = sorted(graph.edge_index().T.tolist())
    assert found == sorted(torch.tensor(EDGES).T.tolist())


@pytest.mark.parametrize("form", [_as_pyg_edge_index, _as_pyg_data, _as_sparse_tensor])
def test_sizes_come_with_the_form(form: Callable[[], Any]) -> None:
    graph = Graph.from_any(form())
    assert (graph.num_src_nodes, graph.num_dst_nodes) == (3, 3)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_matrices_may_be_rectangular() -> None:
    row_ptr, col = torch.tensor([0, 1, 2]), torch.tensor([4, 0])
    matrix = torch.sparse_csr_tensor(row_ptr, col, torch.ones(2), size=(2, 5))
    for form in (matrix, matrix.to_sparse_coo(), SparseTensorLike(row_ptr, col, (2, 5))):
        graph = Graph.from_any(form)
        assert (graph.num_src_nodes, graph.num_dst_nodes) == (5, 2)
        assert sorted(graph.edge_index().T.tolist()) == [[0, 1], [4, 0]]


def test_coo_keeps_the_callers_order_and_types() -> None:
    graph = Graph.from_any(_as_torch_coo(), edge_type=torch.tensor([0, 1, 2, 3, 4, 5]))
    assert graph.edge_index().tolist() == EDGES
    assert graph.edge_type().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_edge_types_of_any_integer_dtype(dtype: torch.dtype) -> None:
    types = torch.tensor([1, 0, 2, 0, 1, 2], dtype=dtype)
    graph = Graph.from_edge_index(torch.tensor(EDGES), 3, edge_type=types)
    assert graph.num_edge_types == 3 and graph.has_edge_types
    assert graph.edge_type().tolist() == types.tolist()


def test_types_rise_inside_a_row_then_sources() -> None:
    graph = random_graph("power_law", 30, 600, num_edge_types=4, seed=0)
    row, csr = rows_of(graph.csr), graph.csr
    rank = (row * 256 + csr.edge_type) * graph.num_src_nodes + csr.index
    assert (rank.diff() >= 0).all()


def test_duplicates_keep_the_callers_order_among_themselves() -> None:
    graph = random_graph("uniform", 4, 400, num_edge_types=2, seed=0)
    row, csr = rows_of(graph.csr), graph.csr
    rank = (row * 256 + csr.edge_type) * graph.num_src_nodes + csr.index
    same = rank.diff() == 0
    assert (ids_of(csr).diff()[same] > 0).all()


def test_without_types_there_are_none() -> None:
    graph = random_graph("uniform", 5, 9, seed=0)
    assert graph.edge_type() is None and not graph.has_edge_types
    assert graph.csr.edge_type.numel() == 0 and graph.csc.edge_type.numel() == 0


def test_transpose_is_made_once() -> None:
    graph = random_graph("uniform", 5, 9, seed=0)
    assert graph.csc is graph.csc


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("types", [0, 3])
def test_transpose_holds_the_same_edges(law: str, types: int, device: torch.device) -> None:
    graph = random_graph(law, (40, 30), 500, num_edge_types=types, seed=1, device=device)
    forward = torch.stack((graph.csr.index.long(), rows_of(graph.csr)))
    backward = torch.stack((rows_of(graph.csc), graph.csc.index.long()))
    by_id = ids_of(graph.csr).argsort(), ids_of(graph.csc).argsort()
    assert torch.equal(forward[:, by_id[0]], backward[:, by_id[1]])
    assert torch.equal(ids_of(graph.csc).sort().values, torch.arange(500, device=device))
    if types:
        first = graph.csr.edge_type[by_id[0]]
        assert torch.equal(first, graph.csc.edge_type[by_id[1]])


@pytest.mark.parametrize("edges_of_row", [1, 1024, 1025, 2048, 2049, 5000])
def test_heavy_items_cover_heavy_rows_exactly(edges_of_row: int) -> None:
    light = [0, 3, 1023]
    counts = torch.tensor([light[0], edges_of_row, light[1], edges_of_row + 1, light[2]])
    ptr = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    graph = Graph.from_csr(ptr, torch.zeros(int(counts.sum()), dtype=torch.int64))
    expected = [row for row in range(5) if counts[row] > HEAVY_ROW_EDGES]
    covered: dict[int, list[int]] = {}
    for row, begin, end in graph.csr.heavy.tolist():
        assert 0 < end - begin <= HEAVY_ROW_EDGES
        covered.setdefault(row, []).extend(range(begin, end))
    assert list(covered) == expected
    for row, positions in covered.items():
        assert positions == list(range(int(ptr[row]), int(ptr[row + 1])))


def test_kernels_and_graphs_agree_what_is_heavy() -> None:
    header = Path(__file__).parents[1] / "csrc/common/attention/gpu_common.cuh"
    found = re.findall(r"kHeavyRowEdges = (\d+);", header.read_text())
    assert found == [str(HEAVY_ROW_EDGES)]


@pytest.mark.parametrize("counts", [[], [0], [1024, 7], [1025] * 4, [5000, 0, 2048, 1, 2049]])
def test_heavy_items_need_only_know_the_number_of_edges(counts: list[int]) -> None:
    ptr = torch.tensor([0, *counts]).cumsum(0)
    edges = sum(counts)
    exact = heavy_items(ptr, edges)
    assert exact.shape == heavy_items(torch.zeros_like(ptr), edges).shape
    more = heavy_items(ptr, edges + 5000)
    expected = [
        [row, begin, min(begin + HEAVY_ROW_EDGES, int(ptr[row + 1]))]
        for row, count in enumerate(counts)
        if count > HEAVY_ROW_EDGES
        for begin in range(int(ptr[row]), int(ptr[row + 1]), HEAVY_ROW_EDGES)
    ]
    for items in (exact, more):
        assert items[: len(expected)].tolist() == expected
        assert bool((items[len(expected) :] == -1).all())


def test_transpose_has_heavy_rows_of_its_own() -> None:
    graph = Graph.from_edge_index(torch.stack((torch.zeros(3000), torch.arange(3000))).long())
    assert graph.csr.heavy.numel() == 0
    assert graph.csc.heavy.tolist() == [[0, 0, 1024], [0, 1024, 2048], [0, 2048, 3000]]


@strategies.composite
def edge_lists(draw: strategies.DrawFn) -> tuple[Tensor, tuple[int, int], Tensor | None]:
    """Any small graph, with types or without."""
    num_src, num_dst = draw(strategies.integers(1, 9)), draw(strategies.integers(1, 9))
    ends = strategies.tuples(
        strategies.integers(0, num_src - 1), strategies.integers(0, num_dst - 1)
    )
    pairs = draw(strategies.lists(ends, max_size=50))
    dtype = draw(strategies.sampled_from([torch.int32, torch.int64]))
    edges = torch.tensor(pairs, dtype=dtype).reshape(-1, 2).T
    if not draw(strategies.booleans()):
        return edges, (num_src, num_dst), None
    kinds = strategies.lists(strategies.integers(0, 255), min_size=len(pairs), max_size=len(pairs))
    return edges, (num_src, num_dst), torch.tensor(draw(kinds), dtype=torch.int64)


@hypothesis.given(edge_lists())
def test_any_edge_list_survives_the_round_trip(
    case: tuple[Tensor, tuple[int, int], Tensor | None],
) -> None:
    edges, sizes, types = case
    graph = Graph.from_edge_index(edges, sizes, edge_type=types)
    assert torch.equal(graph.edge_index(), edges.long())
    assert torch.equal(graph.degree(), torch.bincount(edges[1].long(), minlength=sizes[1]))
    assert torch.equal(graph.csc.ptr.diff(), torch.bincount(edges[0].long(), minlength=sizes[0]))
    assert torch.equal(edges[1].long()[ids_of(graph.csc)], graph.csc.index.long())
    if types is not None:
        assert torch.equal(graph.edge_type().long(), types)
        assert torch.equal(types[ids_of(graph.csc)], graph.csc.edge_type.long())


@hypothesis.given(edge_lists(), strategies.booleans())
def test_native_grouping_is_torchs_grouping(
    case: tuple[Tensor, tuple[int, int], Tensor | None], by_value: bool
) -> None:
    if _native.missing_reason("cpu"):
        pytest.skip(str(_native.missing_reason("cpu")))
    edges, sizes, types = case
    source, destination = edges.int().contiguous()
    kind = torch.empty(0, dtype=torch.uint8) if types is None else types.to(torch.uint8)
    values = sizes[0] if by_value else 0
    native = torch.ops.gtkern_C.group_edges(destination, source, kind, sizes[1], values)
    plain = _group_edges_torch(destination, source, kind, sizes[1], by_value)
    for found, expected in zip(native, plain, strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("threads", [1, 2])
def test_native_grouping_at_a_size_that_is_split_among_threads(law: str, threads: int) -> None:
    if _native.missing_reason("cpu"):
        pytest.skip(str(_native.missing_reason("cpu")))
    torch.set_num_threads(threads)
    source, destination = random_edges(law, 5_000, 200_000, seed=2).int()
    kind = (source % 5).to(torch.uint8)
    native = torch.ops.gtkern_C.group_edges(destination, source, kind, 5_000, 5_000)
    plain = _group_edges_torch(destination, source, kind, 5_000, True)
    for found, expected in zip(native, plain, strict=True):
        assert torch.equal(found, expected)


def test_grouping_passes_opcheck() -> None:
    source, destination = random_edges("uniform", 6, 20, seed=0)
    empty = torch.empty(0, dtype=torch.int64)
    arguments = (destination, source, empty, empty.to(torch.uint8), 6, 6)
    report = torch.library.opcheck(torch.ops.gtkern.group_edges.default, arguments)
    assert set(report.values()) == {"SUCCESS"}


def test_to_the_same_device_is_the_same_graph() -> None:
    graph = random_graph("uniform", 5, 9, seed=0)
    assert graph.to("cpu") is graph


def test_to_another_device_takes_the_transpose_along(device: torch.device) -> None:
    graph = random_graph("hub", 50, 5_000, num_edge_types=2, seed=0)
    csc = graph.csc
    moved = graph.to(device)
    assert moved.device.type == device.type and moved.num_edge_types == 2
    for here, there in zip(csc, moved.csc, strict=True):
        assert torch.equal(here, there.cpu())


def test_validate_accepts_a_good_graph() -> None:
    graph = random_graph("uniform", (5, 4), 9, num_edge_types=2, seed=0)
    assert graph.validate() is graph


def test_validate_finds_an_index_changed_by_hand() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 2], [0, 1, 2]]), 3)
    graph.csr.index[1] = 7
    with pytest.raises(ValueError, match=r"^col must be 0 \.\. 2 .*got 7 at edge 1"):
        graph.validate()


def test_repr_tells_the_sizes() -> None:
    graph = random_graph("uniform", (5, 4), 9, num_edge_types=2, seed=0)
    text = "Graph(num_nodes=(5, 4), num_edges=9, num_edge_types=2, device=cpu)"
    assert repr(graph) == text
    assert "num_nodes=3," in repr(Graph.from_edge_index(torch.tensor(EDGES), 3))


GOOD = torch.tensor(EDGES)
POINTER, COLUMN = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("edges", "nodes", "types", "error", "message"),
    [
        ([[0], [1]], 2, None, TypeError, "edge_index must be a tensor, got list"),
        (GOOD.float(), 3, None, TypeError, "edge_index must be int32 or int64, got torch.float32"),
        (GOOD.short(), 3, None, TypeError, "edge_index must be int32 or int64, got torch.int16"),
        (GOOD.T, 3, None, ValueError, "edge_index must have shape [2, E], got [6, 2]"),
        (GOOD[0], 3, None, ValueError, "edge_index must have shape [2, E], got [6]"),
        (GOOD - 1, 3, None, ValueError,
         "edge_index[0] (the sources) must be 0 .. 2 (num_nodes - 1), got -1 at edge 1"),
        (GOOD, (2, 3), None, ValueError,
         "edge_index[0] (the sources) must be 0 .. 1 (num_nodes - 1), got 2 at edge 0"),
        (GOOD, (3, 2), None, ValueError,
         "edge_index[1] (the destinations) must be 0 .. 1 (num_nodes - 1), got 2 at edge 4"),
        (GOOD, 0, None, ValueError, "edge_index[0] (the sources)"),
        (GOOD, -1, None, ValueError, "num_nodes must be 0 .. 2147483647, got -1"),
        (GOOD, 2**31, None, ValueError, "num_nodes must be 0 .. 2147483647, got 2147483648"),
        (GOOD, (3, 3, 3), None, ValueError, "num_nodes must be N or (N_src, N_dst), got 3 numbers"),
        (GOOD, 10**400, None, ValueError,
         "num_nodes must be 0 .. 2147483647, got an integer of 1329 bits"),
        (GOOD, torch.arange(3), None, TypeError, "num_nodes must be an integer, got Tensor"),
        (GOOD, Graph, None, TypeError, "num_nodes must be an integer, got type"),
        (GOOD.to("meta"), None, None, ValueError,
         "edge_index must be on a device that holds values, got meta"),
        (GOOD.to_sparse(), 3, None, TypeError,
         "edge_index must be a dense tensor, got layout torch.sparse_coo"),
        (GOOD * 2**61, None, None, ValueError, "edge_index must be 0 .. 2147483646, got 46116860"),
        (GOOD, 2.5, None, TypeError, "num_nodes must be an integer, got float"),
        (GOOD, "3", None, TypeError, "num_nodes must be an integer, got str"),
        (GOOD, 3, [0] * 6, TypeError, "edge_type must be a tensor, got list"),
        (GOOD, 3, torch.zeros(6), TypeError,
         "edge_type must have an integer dtype, got torch.float32"),
        (GOOD, 3, torch.zeros(6, dtype=torch.bool), TypeError,
         "edge_type must have an integer dtype, got torch.bool"),
        (GOOD, 3, torch.zeros(5, dtype=torch.int64), ValueError,
         "edge_type must have shape [6] (one for each edge), got [5]"),
        (GOOD, 3, torch.full((6,), 256), ValueError, "edge_type must be 0 .. 255, got 256"),
        (GOOD, 3, torch.full((6,), -1), ValueError, "edge_type must be 0 .. 255, got -1"),
        (GOOD, 3, torch.zeros(6, dtype=torch.int64, device="meta"), ValueError,
         "edge_type must be on the device of the edges (cpu), got meta"),
    ],
)  # fmt: skip
def test_bad_edge_lists_are_refused(
    edges: Any, nodes: Any, types: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        Graph.from_edge_index(edges, nodes, edge_type=types)


@pytest.mark.parametrize(
    ("row_ptr", "col", "nodes", "error", "message"),
    [
        ([0, 1], COLUMN, None, TypeError, "row_ptr must be a tensor, got list"),
        (POINTER, (0,), None, TypeError, "col must be a tensor, got tuple"),
        (POINTER[None], COLUMN, None, ValueError,
         "row_ptr must have one dimension, got shape [1, 3]"),
        (POINTER.float(), COLUMN, None, TypeError,
         "row_ptr must be int32 or int64, got torch.float32"),
        (POINTER, COLUMN.byte(), None, TypeError, "col must be int32 or int64, got torch.uint8"),
        (POINTER[:0], COLUMN, None, ValueError,
         "row_ptr must have at least 1 entry (nodes + 1), got 0"),
        (POINTER, COLUMN.to("meta"), None, ValueError,
         "col must be on the device of row_ptr (cpu), got meta"),
        (POINTER + 1, COLUMN, None, ValueError,
         "row_ptr must run from 0 to the number of edges 3, got 1 .. 4"),
        (POINTER.to("meta"), COLUMN.to("meta"), None, ValueError,
         "row_ptr must be on a device that holds values, got meta"),
        (POINTER, COLUMN.to_sparse(), None, TypeError, "col must be a dense tensor, got layout"),
        (POINTER[:2], COLUMN, None, ValueError,
         "row_ptr must run from 0 to the number of edges 3, got 0 .. 1"),
        # the differences wrap around to numbers that are not negative
        (torch.tensor([0, 2**62 + 1, -(2**62), 3]), COLUMN, None, ValueError,
         "row_ptr must not fall, got 4611686018427387905 then -4611686018427387904 at position 2"),
        (torch.tensor([0, 2, 1, 3]), COLUMN, None, ValueError,
         "row_ptr must not fall, got 2 then 1 at position 2"),
        (POINTER, COLUMN + 1, None, ValueError, "col must be 0 .. 1 (num_nodes - 1), got 2"),
        (POINTER, COLUMN - 1, None, ValueError, "col must be 0 .. 1 (num_nodes - 1), got -1"),
        (POINTER, COLUMN, 1, ValueError, "col must be 0 .. 0 (num_nodes - 1), got 1 at edge 1"),
        (POINTER, COLUMN, -1, ValueError, "num_src_nodes must be 0 .. 2147483647, got -1"),
    ],
)  # fmt: skip
def test_bad_csr_is_refused(
    row_ptr: Any, col: Any, nodes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        Graph.from_csr(row_ptr, col, nodes)


@pytest.mark.parametrize("edges", [None, "edges", 3, {"edge_index": GOOD}])
def test_what_holds_no_edges_is_refused(edges: Any) -> None:
    with pytest.raises(TypeError, match=r"^edges must be a Graph, an edge_index tensor, .*got "):
        Graph.from_any(edges)


def test_sizes_that_contradict_a_csr_pair_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^num_nodes must be \(N_src, 2\).*got \(2, 5\)"):
        Graph.from_any((POINTER, COLUMN), (2, 5))
    with pytest.raises(
        ValueError, match=r"^num_nodes must be N or \(N_src, N_dst\), got 0 numbers"
    ):
        Graph.from_any((POINTER, COLUMN), ())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^num_nodes must be an integer, got NoneType"):
        Graph.from_any((POINTER, COLUMN), (2, None))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_that_are_no_matrix_are_refused() -> None:
    cube = torch.sparse_coo_tensor(torch.zeros(3, 1, dtype=torch.int64), torch.ones(1), (2, 2, 2))
    with pytest.raises(ValueError, match=r"^edges must be a sparse matrix, got shape \[2, 2, 2\]"):
        Graph.from_any(cube)


@pytest.mark.parametrize("law", LAWS)
def test_random_edges_repeat_with_their_seed(law: str) -> None:
    first, again = (random_edges(law, (9, 7), 100, seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, random_edges(law, (9, 7), 100, seed=4))
    assert first[0].max() < 9 and first[1].max() < 7


def test_laws_have_the_degrees_they_promise() -> None:
    regular = random_graph("regular", 50, 200, seed=0).degree()
    assert (regular == 4).all()
    hub = random_graph("hub", 50, 400, seed=0)
    assert hub.degree()[0] >= 200 and hub.csc.ptr.diff()[0] >= 100
    degree = random_graph("power_law", 1_000, 20_000, seed=0).degree().sort(descending=True).values
    assert degree[0] > 20 * degree[500]


def test_random_graphs_use_every_type() -> None:
    graph = random_graph("uniform", 20, 40, num_edge_types=7, seed=0)
    assert graph.edge_type().unique().tolist() == list(range(7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("star", 3, 3), "law must be one of hub, power_law, regular, uniform, got 'star'"),
        (("uniform", -1, 0), "num_nodes and num_edges must not be negative"),
        (("uniform", 0, 3), "num_nodes must be positive where there are edges, got 0"),
    ],
)
def test_impossible_random_graphs_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        random_edges(*arguments, seed=0)
