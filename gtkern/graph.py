"""Graph: the edges in the order kernels want, made and checked once, used by every op."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gtkern import _check, _native

__all__ = ["HEAVY_ROW_EDGES", "Adjacency", "GCNNorm", "Graph", "heavy_items", "rows_equal_columns"]

HEAVY_ROW_EDGES = 1024
"""GPU kernels split rows with more edges than this into items of at most this many."""

_INDEX_DTYPES = (torch.int32, torch.int64)
_MAX_NODES = 2**31 - 1


def heavy_items(ptr: Tensor, edges: int) -> Tensor:
    """Cut the rows with more than HEAVY_ROW_EDGES edges, without waiting for the device.

    Args:
        ptr: int64 [rows + 1].
        edges: at least ptr[-1].

    Returns:
        int64 [M, 3]: (row, begin, end) of the pieces, in order, then (-1, -1, -1). M depends on
        `edges` alone: as many as that many edges can make.
    """
    rows = ptr.numel() - 1
    # a row of HEAVY_ROW_EDGES + 1 edges makes two, and no row makes more for each of its edges
    most = 2 * edges // (HEAVY_ROW_EDGES + 1) if edges > HEAVY_ROW_EDGES and rows else 0
    if not most:
        return ptr.new_empty((0, 3))
    degree = ptr.diff()
    pieces = (degree + (HEAVY_ROW_EDGES - 1)) // HEAVY_ROW_EDGES * (degree > HEAVY_ROW_EDGES)
    after = pieces.cumsum(0)
    before = after - pieces
    number = torch.arange(most, device=ptr.device)
    row = torch.searchsorted(after, number, right=True)
    used = row < rows
    row = row.clamp(max=rows - 1)
    begin = ptr[row] + (number - before[row]) * HEAVY_ROW_EDGES
    end = torch.minimum(begin + HEAVY_ROW_EDGES, ptr[1:][row])
    return torch.where(used[:, None], torch.stack((row, begin, end), dim=1), -1)


def rows_equal_columns(ptr: Tensor, index: Tensor, weight: Tensor | None) -> bool:
    """Whether a square sparse matrix is symmetric; its entries at a place add up.

    Multiplies a fixed random vector from both sides and compares row by row, weights to 1e-6. Waits
    for the device.

    Args:
        ptr: int64 [N + 1]. index: int32 [E]; columns, by row.
        weight: [E], by position; None: ones.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.rand(ptr.numel() - 1, generator=generator, dtype=torch.float64) + 0.5
    vector = vector.to(ptr.device)
    rows = torch.arange(ptr.numel() - 1, device=ptr.device)
    row = torch.repeat_interleave(rows, ptr.diff(), output_size=index.numel())
    column = index.to(torch.int64)
    weights = torch.ones_like(column) if weight is None else weight.double()
    zeros = torch.zeros_like(vector)
    gap = zeros.index_add(0, row, weights * vector[column])
    gap = gap.index_add(0, column, -weights * vector[row])
    size = zeros.index_add(0, row, weights.abs() * vector[column])
    return bool((gap.abs() <= (1e-10 if weight is None else 1e-6) * size).all())


class Adjacency(NamedTuple):
    """The edges grouped by one end, in the layout that kernels read.

    Attributes:
        ptr: int64 [rows + 1]; row r owns the positions ptr[r] .. ptr[r + 1].
        index: int32 [E]; the other end of each edge; ascending inside a row (and type) when the
            graph was made from an edge list, which keeps what kernels gather close together.
        edge_id: int64 [E]; the caller's number of the edge at each position. Empty: the identity.
        edge_type: uint8 [E], ascending inside a row when the graph was made from an edge list.
            Empty: all edges have type 0.
        heavy: int64 [M, 3]; items (row, begin, end) that cover the rows with more than
            HEAVY_ROW_EDGES edges, in order. Empty when there is none.
    """

    ptr: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which nobody calls here
    edge_id: Tensor
    edge_type: Tensor
    heavy: Tensor


class GCNNorm(NamedTuple):
    """D^-1/2 (A + I) D^-1/2 in numbers of nodes alone.

    Attributes:
        scale: float64 [N]; D^-1/2, the degrees counting one self loop for each node.
        own: float64 [N]; how often a node counts beside its edges: 1, less its self loops.
    """

    scale: Tensor
    own: Tensor


class Graph:
    """A directed, possibly bipartite graph, grouped by destination (CSR).

    Row i holds the edges j -> i that come into node i: node i gathers from its sources. Duplicate
    edges stay separate edges. The grouping by source (CSC), which backward passes need, is made on
    first use and kept.

    Make one with `Graph.from_edge_index`, `Graph.from_csr` or `Graph.from_any`. Threads may share
    one: two that ask first at the same time both make what is kept, which is equal, and one of the
    two stays.

    Attributes:
        symmetric: what `is_symmetric` found; None before it was asked.
    """

    def __init__(self, csr: Adjacency, num_nodes: tuple[int, int], num_edge_types: int) -> None:
        self.csr = csr
        self._num_nodes = num_nodes
        self.num_edge_types = num_edge_types
        self._csc: Adjacency | None = None
        self.symmetric: bool | None = None
        self._gcn_norm: GCNNorm | None = None

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_nodes: int | tuple[int, int] | None = None,
        *,
        edge_type: Tensor | None = None,
    ) -> Graph:
        """Group an edge list by destination.

        Args:
            edge_index: int32 or int64 [2, E]; row 0 the sources j, row 1 the destinations i (PyG's
                convention). A PyG `EdgeIndex` works too.
            num_nodes: N, or (N_src, N_dst) for a bipartite graph; default: the size an `EdgeIndex`
                carries, else one more than the largest index.
            edge_type: integers [E] in 0 .. 255: the type of each edge.

        Raises:
            TypeError: an argument is no tensor or has the wrong dtype.
            ValueError: wrong shape, an index out of range, a type out of range, or two devices.
        """
        _check.tensor("edge_index", edge_index)
        if num_nodes is None and hasattr(edge_index, "sparse_size"):
            sizes = edge_index.sparse_size()
            num_nodes = None if None in sizes else (int(sizes[0]), int(sizes[1]))
        edge_index = edge_index.as_subclass(Tensor)
        if edge_index.dim() != 2 or edge_index.size(0) != 2:
            raise ValueError(f"edge_index must have shape [2, E], got {list(edge_index.shape)}")
        _check_index_dtype("edge_index", edge_index)
        _check.has_values("edge_index", edge_index)
        source, destination = edge_index[0], edge_index[1]
        sizes = _node_counts(num_nodes, source, destination)
        _check_range("edge_index[0] (the sources)", source, sizes[0])
        _check_range("edge_index[1] (the destinations)", destination, sizes[1])
        types, num_edge_types = _check_edge_type(edge_type, edge_index.size(1), edge_index.device)
        no_ids = types.new_empty(0, dtype=torch.int64)
        csr = _group(destination, source, no_ids, types, sizes[1], sizes[0])
        return cls(csr, sizes, num_edge_types)

    @classmethod
    def from_csr(
        cls,
        row_ptr: Tensor,
        col: Tensor,
        num_src_nodes: int | None = None,
        *,
        edge_type: Tensor | None = None,
    ) -> Graph:
        """Take edges already grouped by destination; they keep their order.

        Args:
            row_ptr: int32 or int64 [N_dst + 1], rising from 0 to E.
            col: int32 or int64 [E]; the source of each edge.
            num_src_nodes: N_src; default N_dst.
            edge_type: integers [E] in 0 .. 255.

        Raises:
            TypeError, ValueError: as `from_edge_index`, and when row_ptr does not rise from 0 to E.
        """
        for name, tensor in (("row_ptr", row_ptr), ("col", col)):
            _check.tensor(name, tensor)
            if tensor.dim() != 1:
                raise ValueError(f"{name} must have one dimension, got shape {list(tensor.shape)}")
            _check_index_dtype(name, tensor)
        if row_ptr.numel() == 0:
            raise ValueError("row_ptr must have at least 1 entry (nodes + 1), got 0")
        if row_ptr.device != col.device:
            raise ValueError(
                f"col must be on the device of row_ptr ({row_ptr.device}), got {col.device}"
            )
        _check.has_values("row_ptr", row_ptr)
        row_ptr = row_ptr.to(torch.int64)
        first, last = int(row_ptr[0]), int(row_ptr[-1])
        if first != 0 or last != col.numel():
            raise ValueError(
                f"row_ptr must run from 0 to the number of edges {col.numel()}, "
                f"got {first} .. {last}"
            )
        falls = _check.falls(row_ptr)
        if bool(falls.any()):
            at = int(falls.nonzero()[0])
            raise ValueError(
                f"row_ptr must not fall, got {int(row_ptr[at])} then {int(row_ptr[at + 1])} "
                f"at position {at + 1}"
            )
        num_dst = row_ptr.numel() - 1
        if num_src_nodes is None:
            num_src_nodes = num_dst
        sizes = (_check.integer("num_src_nodes", num_src_nodes, 0, _MAX_NODES), num_dst)
        _check_range("col", col, sizes[0])
        types, num_edge_types = _check_edge_type(edge_type, col.numel(), col.device)
        empty = row_ptr.new_empty(0)
        csr = Adjacency(
            row_ptr.contiguous(),
            col.to(torch.int32).contiguous(),
            empty,
            types,
            _heavy(row_ptr, col.numel()),
        )
        return cls(csr, sizes, num_edge_types)

    @classmethod
    def from_any(
        cls,
        edges: Any,
        num_nodes: int | tuple[int, int] | None = None,
        *,
        edge_type: Tensor | None = None,
    ) -> Graph:
        """Make a graph from whatever holds edges.

        Args:
            edges: a `Graph` (returned as it is), an edge_index tensor or PyG `EdgeIndex`, a pair
                (row_ptr, col), a PyG `Data` (its edge_index and num_nodes), a `SparseTensor` or a
                torch sparse CSR/COO tensor (row = destination, as PyG's adj_t).
            num_nodes, edge_type: as `from_edge_index`.
        """
        if isinstance(edges, Graph):
            return edges
        if isinstance(edges, (tuple, list)) and len(edges) == 2:
            row_ptr, col = edges
            if isinstance(num_nodes, (tuple, list)):
                num_src, num_dst = _both(num_nodes)
                if isinstance(row_ptr, Tensor) and row_ptr.numel() != num_dst + 1:
                    raise ValueError(
                        f"num_nodes must be (N_src, {row_ptr.numel() - 1}) for a row_ptr of "
                        f"{row_ptr.numel()} entries, got {num_nodes}"
                    )
                num_nodes = num_src
            return cls.from_csr(row_ptr, col, num_nodes, edge_type=edge_type)
        if isinstance(edges, Tensor):
            if edges.layout in (torch.sparse_coo, torch.sparse_csr) and edges.dim() != 2:
                raise ValueError(f"edges must be a sparse matrix, got shape {list(edges.shape)}")
            if edges.layout == torch.sparse_coo:
                # not coalesced: that would merge duplicate edges and lose the caller's order
                return cls.from_edge_index(
                    edges._indices().flip(0), (edges.size(1), edges.size(0)), edge_type=edge_type
                )
            if edges.layout == torch.sparse_csr:
                return cls.from_csr(
                    edges.crow_indices(), edges.col_indices(), edges.size(1), edge_type=edge_type
                )
            return cls.from_edge_index(edges, num_nodes, edge_type=edge_type)
        if hasattr(edges, "csr") and hasattr(edges, "sparse_size"):
            row_ptr, col, _ = edges.csr()
            return cls.from_csr(row_ptr, col, edges.sparse_size(1), edge_type=edge_type)
        if getattr(edges, "edge_index", None) is not None:
            nodes = edges.num_nodes if num_nodes is None else num_nodes
            return cls.from_edge_index(edges.edge_index, nodes, edge_type=edge_type)
        raise TypeError(
            "edges must be a Graph, an edge_index tensor, a pair (row_ptr, col), a PyG Data, or a "
            f"sparse tensor, got {type(edges).__name__}"
        )

    @property
    def num_src_nodes(self) -> int:
        """N_src, the nodes that are gathered from."""
        return self._num_nodes[0]

    @property
    def num_dst_nodes(self) -> int:
        """N_dst, the nodes that gather."""
        return self._num_nodes[1]

    @property
    def num_edges(self) -> int:
        """E."""
        return self.csr.index.numel()

    @property
    def device(self) -> torch.device:
        """Where all of the graph's tensors lie."""
        return self.csr.ptr.device

    @property
    def has_edge_types(self) -> bool:
        """True when the graph was made with edge_type."""
        return self.num_edge_types > 0

    @property
    def csc(self) -> Adjacency:
        """The edges grouped by source; made on first use and kept."""
        if self._csc is None:
            destination = torch.repeat_interleave(
                torch.arange(self.num_dst_nodes, dtype=torch.int32, device=self.device),
                self.csr.ptr.diff(),
                output_size=self.num_edges,
            )
            self._csc = _group(
                self.csr.index,
                destination,
                self.csr.edge_id,
                self.csr.edge_type,
                self.num_src_nodes,
            )
        return self._csc

    def degree(self) -> Tensor:
        """int64 [N_dst]: the number of edges that come into each node."""
        return self.csr.ptr.diff()

    def is_symmetric(self) -> bool:
        """Whether every edge occurs in both directions, equally often; found out once and kept."""
        if self.symmetric is None:
            self.symmetric = rows_equal_columns(self.csr.ptr, self.csr.index, None)
        return self.symmetric

    def gcn_norm(self) -> GCNNorm:
        """The symmetric normalisation with self loops, by node; made on first use and kept.

        A node's own self loops, one or several, count as one, as in PyG's gcn_norm.
        """
        if self._gcn_norm is None:
            degree = self.degree()
            row = torch.arange(self.num_dst_nodes, dtype=torch.int32, device=self.device)
            row = torch.repeat_interleave(row, degree, output_size=self.num_edges)
            # a running sum in place of index_add, which has no fixed order on a GPU
            loops = torch.cat((degree.new_zeros(1), (row == self.csr.index).cumsum(0)))
            loops = loops[self.csr.ptr].diff()
            self._gcn_norm = GCNNorm((degree - loops + 1).double().rsqrt(), (1 - loops).double())
        return self._gcn_norm

    def edge_index(self) -> Tensor:
        """int64 [2, E]: sources and destinations in the caller's order of the edges."""
        destination = torch.repeat_interleave(
            torch.arange(self.num_dst_nodes, device=self.device),
            self.degree(),
            output_size=self.num_edges,
        )
        grouped = torch.stack((self.csr.index.to(torch.int64), destination))
        if not self.csr.edge_id.numel():
            return grouped
        edges = torch.empty_like(grouped)
        edges[:, self.csr.edge_id] = grouped
        return edges

    def edge_type(self) -> Tensor | None:
        """uint8 [E]: the types in the caller's order of the edges; None without types."""
        if not self.has_edge_types:
            return None
        if not self.csr.edge_id.numel():
            return self.csr.edge_type
        types = torch.empty_like(self.csr.edge_type)
        types[self.csr.edge_id] = self.csr.edge_type
        return types

    def to(self, device: torch.device | str) -> Graph:
        """The same graph on another device."""
        device = torch.device(device)
        if device == self.device:
            return self
        moved = Graph(
            Adjacency(*(tensor.to(device) for tensor in self.csr)),
            self._num_nodes,
            self.num_edge_types,
        )
        if self._csc is not None:
            moved._csc = Adjacency(*(tensor.to(device) for tensor in self._csc))
        return moved

    def validate(self) -> Graph:
        """Check every index again, for graphs whose tensors were changed by hand; returns itself.

        Raises:
            ValueError: as `from_csr`.
        """
        Graph.from_csr(self.csr.ptr, self.csr.index, self.num_src_nodes)
        return self

    def __repr__(self) -> str:
        types = f", num_edge_types={self.num_edge_types}" if self.has_edge_types else ""
        nodes = (
            f"num_nodes={self.num_dst_nodes}"
            if self.num_src_nodes == self.num_dst_nodes
            else f"num_nodes=({self.num_src_nodes}, {self.num_dst_nodes})"
        )
        return f"Graph({nodes}, num_edges={self.num_edges}{types}, device={self.device})"


torch.library.define(
    "gtkern::group_edges",
    "(Tensor key, Tensor value, Tensor edge_id, Tensor edge_type, SymInt rows, SymInt values)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("gtkern::group_edges", "CompositeExplicitAutograd")
def _group_edges(
    key: Tensor, value: Tensor, edge_id: Tensor, edge_type: Tensor, rows: int, values: int
) -> tuple[Tensor, ...]:
    """Stable grouping of edges by (key, type), and by value inside when `values` (how many there
    are) is not 0: counting sorts where the native library has them.
    """
    if key.device.type == "cpu" and _native.missing_reason("cpu") is None:
        ptr, index, order, types = torch.ops.gtkern_C.group_edges(
            key.to(torch.int32).contiguous(),
            value.to(torch.int32).contiguous(),
            edge_type,
            rows,
            values,
        )
    else:
        ptr, index, order, types = _group_edges_torch(key, value, edge_type, rows, values > 0)
    if edge_id.numel():
        order = edge_id[order] if order.numel() else edge_id.clone()
    return ptr, index, order, types, _heavy(ptr, index.numel())


def _group_edges_torch(
    key: Tensor, value: Tensor, edge_type: Tensor, rows: int, by_value: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rank = key.to(torch.int64)
    counts = torch.bincount(rank, minlength=rows)
    ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    if edge_type.numel():
        rank = rank * 256 + edge_type
    order = torch.arange(rank.numel(), device=key.device)
    if by_value:
        order = torch.sort(value, stable=True).indices
    order = order[torch.sort(rank[order], stable=True).indices]
    types = edge_type[order] if edge_type.numel() else torch.empty_like(edge_type)
    index = value.to(torch.int32)[order]
    if bool((order.diff() == 1).all()):
        order = order.new_empty(0)
    return ptr, index, order, types


@torch.library.register_fake("gtkern::group_edges")
def _group_edges_fake(
    key: Tensor, value: Tensor, edge_id: Tensor, edge_type: Tensor, rows: int, values: int
) -> tuple[Tensor, ...]:
    context = torch.library.get_ctx()
    return (
        key.new_empty(rows + 1, dtype=torch.int64),
        key.new_empty(key.numel(), dtype=torch.int32),
        key.new_empty(context.new_dynamic_size(), dtype=torch.int64),
        torch.empty_like(edge_type),
        key.new_empty((context.new_dynamic_size(), 3), dtype=torch.int64),
    )


def _group(
    key: Tensor, value: Tensor, edge_id: Tensor, edge_type: Tensor, rows: int, values: int = 0
) -> Adjacency:
    return Adjacency(*torch.ops.gtkern.group_edges(key, value, edge_id, edge_type, rows, values))


def _heavy(ptr: Tensor, edges: int) -> Tensor:
    """`heavy_items` without those that are not used, for what is made once and kept."""
    items = heavy_items(ptr, edges)
    return items[items[:, 0] >= 0]


def _check_index_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _INDEX_DTYPES:
        raise TypeError(f"{name} must be int32 or int64, got {tensor.dtype}")


def _node_counts(
    num_nodes: int | tuple[int, int] | None, source: Tensor, destination: Tensor
) -> tuple[int, int]:
    if num_nodes is None:
        if source.numel() == 0:
            return 0, 0
        largest = int(torch.maximum(source.max(), destination.max()))
        if largest >= _MAX_NODES:
            raise ValueError(f"edge_index must be 0 .. {_MAX_NODES - 1}, got {largest}")
        return largest + 1, largest + 1
    return _both(num_nodes)


def _both(num_nodes: int | tuple[int, int]) -> tuple[int, int]:
    """The numbers of sources and destinations, checked."""
    if isinstance(num_nodes, (tuple, list)):
        if len(num_nodes) != 2:
            raise ValueError(f"num_nodes must be N or (N_src, N_dst), got {len(num_nodes)} numbers")
        sizes = (num_nodes[0], num_nodes[1])
    else:
        sizes = (num_nodes, num_nodes)
    first, second = (_check.integer("num_nodes", count, 0, _MAX_NODES) for count in sizes)
    return first, second


def _check_range(name: str, index: Tensor, size: int) -> None:
    if index.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(index))
    if low < 0 or high >= size:
        wrong = low if low < 0 else high
        at = int((index == wrong).nonzero()[0])
        raise ValueError(
            f"{name} must be 0 .. {size - 1} (num_nodes - 1), got {wrong} at edge {at}"
        )


def _check_edge_type(
    edge_type: Tensor | None, num_edges: int, device: torch.device
) -> tuple[Tensor, int]:
    if edge_type is None:
        return torch.empty(0, dtype=torch.uint8, device=device), 0
    _check.tensor("edge_type", edge_type)
    if edge_type.is_floating_point() or edge_type.is_complex() or edge_type.dtype == torch.bool:
        raise TypeError(f"edge_type must have an integer dtype, got {edge_type.dtype}")
    if list(edge_type.shape) != [num_edges]:
        raise ValueError(
            f"edge_type must have shape [{num_edges}] (one for each edge), "
            f"got {list(edge_type.shape)}"
        )
    if edge_type.device != device:
        raise ValueError(
            f"edge_type must be on the device of the edges ({device}), got {edge_type.device}"
        )
    if num_edges == 0:
        return edge_type.to(torch.uint8), 1
    low, high = (int(value) for value in torch.aminmax(edge_type))
    if low < 0 or high > 255:
        raise ValueError(f"edge_type must be 0 .. 255, got {low if low < 0 else high}")
    return edge_type.to(torch.uint8).contiguous(), high + 1
