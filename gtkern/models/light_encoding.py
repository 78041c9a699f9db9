"""The line graphs that LiGhT attends in: triplets, and the paths between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gtkern.models.chunks import Chunk, chunks, local_numbers, narrow
from gtkern.transforms import hop_distances, shortest_path_edges

__all__ = ["ATOMS", "BOND", "COUNT", "KIND", "NAMES", "PAIRS", "PATHS", "encode"]

ATOMS, BOND, COUNT = "light_atoms", "light_bond", "light_count"
PAIRS, PATHS, KIND = "light_pairs", "light_paths", "light_kind"
NAMES = (ATOMS, BOND, COUNT, PAIRS, PATHS, KIND)
"""The arrays that `encode` adds."""


class _Triplets(NamedTuple):
    """The triplets of some graphs: a graph's bonds, then its atoms without a bond.

    Attributes:
        atoms: int64 [T, 2]; numbers in the graph, the lower first; -1 in place of a second one.
        bond: int64 [T]; the number in its graph of an edge of the bond; -1 without.
        count: int64 [g]; triplets of each graph.
        bonds: int64 [B, 2]; the bonds alone, atoms numbered through the chunk.
        number: int64 [B]; the triplet of each bond, numbered in its graph.
    """

    atoms: Tensor
    bond: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count, which nobody calls here
    bonds: Tensor
    number: Tensor


class _Paths(NamedTuple):
    """Paths between triplets of some graphs, numbered in their graphs.

    Attributes:
        graph: int64 [P].
        query, key: int64 [P].
        path: int64 [P, L]; the triplets from the key on, the query last, -1 in between.
        kind: int64 [P]; see `encode`.
    """

    graph: Tensor
    query: Tensor
    key: Tensor
    path: Tensor
    kind: Tensor


def encode(packed: Any, *, path_length: int, virtual_nodes: int) -> None:
    """Add to a PackedGraphs the line graphs of its graphs, taken as undirected.

    A pair of triplets attends where its triplets are the same (kind 0); where a shortest path
    between two atoms, or two bonds at one atom, begin with one and end with the other and have
    m <= path_length triplets (kind m - 1); and where one of them is a virtual node (kind
    path_length), which come after a graph's triplets.

    The arrays are light_atoms [T, 2], light_bond [T], light_count [G] (see _Triplets);
    light_pairs, bool [Σ (t_g + V)²], whether a pair attends; and for those that do, in order,
    light_paths [P, L] and light_kind [P].

    Raises:
        ValueError: an edge from a node to itself; names the graph.
    """
    parts: list[tuple[Tensor, ...]] = []
    for chunk in chunks(packed):
        triplets = _triplets(chunk)
        found = _joined(
            _self_loops(triplets.count + virtual_nodes, path_length),
            _neighbours(chunk, triplets, path_length),
            _shortest(chunk, triplets, path_length),
            *(_virtual(triplets.count, node, path_length) for node in range(virtual_nodes)),
        )
        pairs, paths, kind, attending = _ordered(found, triplets.count + virtual_nodes)
        parts.append((triplets.atoms, triplets.bond, triplets.count, pairs, paths, kind, attending))
    nothing = torch.empty(0, dtype=torch.int64)
    atoms, paths = nothing.view(0, 2), nothing.view(0, path_length)
    parts = parts or [(atoms, nothing, nothing, nothing, paths, nothing, nothing)]
    atoms, bond, count, pairs, paths, kind, attending = (
        torch.cat(part) for part in zip(*parts, strict=True)
    )
    triplet_ptr, path_ptr = _ptr(count), _ptr(attending)
    packed.add(ATOMS, narrow(atoms), triplet_ptr)
    packed.add(BOND, narrow(bond), triplet_ptr)
    packed.add(COUNT, count, torch.arange(len(packed) + 1))
    packed.add(PAIRS, pairs.to(torch.bool), _ptr((count + virtual_nodes).square()))
    packed.add(PATHS, narrow(paths), path_ptr)
    packed.add(KIND, kind.to(torch.uint8), path_ptr)


def _ptr(counts: Tensor) -> Tensor:
    return functional.pad(counts.cumsum(0), (1, 0))


def _triplets(chunk: Chunk) -> _Triplets:
    nodes = int(chunk.ptr[-1])
    graph_of, local = local_numbers(chunk.sizes)
    low, high = chunk.edge_index.amin(0), chunk.edge_index.amax(0)
    loops = (low == high).nonzero()
    if loops.numel():
        graph = chunk.graphs.start + int(graph_of[low[int(loops[0])]])
        raise ValueError(
            f"edge_index must have no edge from a node to itself, got one in graph {graph}"
        )
    key, bond_of = torch.unique(low * nodes + high, return_inverse=True)
    ends = torch.stack((key // max(nodes, 1), key % max(nodes, 1)), dim=1)
    edges = chunk.edge_index.size(1)
    edge = torch.full_like(key, edges).scatter_reduce_(0, bond_of, torch.arange(edges), "amin")
    edge_graph = graph_of[low]
    first_edge = _ptr(torch.bincount(edge_graph, minlength=chunk.sizes.numel()))
    degree = torch.bincount(ends.flatten(), minlength=nodes)
    alone = (degree == 0).nonzero()[:, 0]
    none = torch.full_like(alone, -1)
    bond_graph = graph_of[ends[:, 0]]
    graph = torch.cat((bond_graph, graph_of[alone]))
    atoms = torch.cat((local[ends], torch.stack((local[alone], none), dim=1)))
    bond = torch.cat((edge - first_edge[bond_graph], none))
    # bonds come ordered by their atoms, so by graph; a stable sort leaves them first there
    order = torch.argsort(graph, stable=True)
    count = torch.bincount(graph, minlength=chunk.sizes.numel())
    bonds_of = torch.bincount(bond_graph, minlength=chunk.sizes.numel())
    number = torch.arange(ends.size(0)) - _ptr(bonds_of)[bond_graph]
    return _Triplets(atoms[order], bond[order], count, ends, number)


def _ends_only(key: Tensor, query: Tensor, length: int) -> Tensor:
    """Paths [P, L] of two triplets."""
    path = torch.full((key.numel(), length), -1, dtype=torch.int64)
    path[:, 0], path[:, -1] = key, query
    return path


def _self_loops(sizes: Tensor, length: int) -> _Paths:
    graph, local = local_numbers(sizes)
    return _Paths(graph, local, local, _ends_only(local, local, length), torch.zeros_like(local))


def _virtual(count: Tensor, node: int, length: int) -> _Paths:
    """Between a virtual node and every triplet of its graph, both ways."""
    graph, local = local_numbers(count)
    own = count[graph] + node
    graph, query, key = torch.cat((graph, graph)), torch.cat((own, local)), torch.cat((local, own))
    kind = torch.full_like(key, length)
    return _Paths(graph, query, key, _ends_only(key, query, length), kind)


def _neighbours(chunk: Chunk, triplets: _Triplets, length: int) -> _Paths:
    """Between two bonds of one atom, both ways."""
    bonds = triplets.bonds.size(0)
    atom, order = triplets.bonds.T.flatten().sort(stable=True)
    bond = order % max(bonds, 1)
    degree = torch.bincount(atom, minlength=int(chunk.ptr[-1]))
    begin = _ptr(degree)
    # each end of a bond meets all ends at the same atom
    mine, other = local_numbers(degree[atom])
    first, second = bond[mine], bond[begin[atom[mine]] + other]
    kept = first != second
    first, second = first[kept], second[kept]
    graph = local_numbers(chunk.sizes)[0][triplets.bonds[first, 0]]
    key, query = triplets.number[first], triplets.number[second]
    return _Paths(graph, query, key, _ends_only(key, query, length), torch.ones_like(key))


def _shortest(chunk: Chunk, triplets: _Triplets, length: int) -> _Paths:
    """Between the first and the last of three or more bonds on a shortest path of two atoms.

    Two bonds are so joined by one pair of atoms at most: two would contradict each other's
    distances.
    """
    ends, bonds = triplets.bonds.T, triplets.bonds.size(0)
    both = torch.cat((ends, ends.flip(0)), dim=1)
    distance = hop_distances(both, chunk.ptr, length).long()
    at = ((distance >= 3) & (distance <= length)).nonzero()[:, 0]
    edges = shortest_path_edges(both, chunk.ptr, length)[at].long()
    distance = distance[at]
    path = torch.full((at.numel(), length), -1, dtype=torch.int64)
    if at.numel():
        # the edges come from the query's end on
        place = torch.arange(length - 1)
        back = (distance[:, None] - 1 - place).clamp(min=0)
        along = triplets.number[edges.gather(1, back).clamp(min=0) % bonds]
        path[:, :-1] = torch.where(place < distance[:, None] - 1, along, -1)
        path[:, -1] = triplets.number[edges[:, 0] % bonds]
    graph = local_numbers(chunk.sizes.square())[0][at]
    return _Paths(graph, path[:, -1].clone(), path[:, 0].clone(), path, distance - 1)


def _joined(*paths: _Paths) -> _Paths:
    return _Paths(*(torch.cat(parts) for parts in zip(*paths, strict=True)))


def _ordered(found: _Paths, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The paths in the order of the pairs.

    Returns:
        Which pairs attend, bool [Σ sizes²]; paths and kinds; how many paths each graph has.
    """
    squares = sizes.square()
    place = _ptr(squares)[found.graph] + found.query * sizes[found.graph] + found.key
    order = torch.argsort(place)
    pairs = torch.zeros(int(squares.sum()), dtype=torch.bool)
    pairs[place] = True
    counts = torch.bincount(found.graph, minlength=sizes.numel())
    return pairs, found.path[order], found.kind[order], counts
