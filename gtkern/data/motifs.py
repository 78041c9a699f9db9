"""A generated task on graphs: nothing to download, and only structure tells the classes apart."""

from __future__ import annotations

import numpy as np
import torch

from gtkern.data.packed import PackedGraphs

__all__ = ["MOTIFS", "motifs"]

MOTIFS = ("AABBCC", "ABCABC", "ABACBC", "AABCBC")
"""The ring of each class: its nodes in order, by category."""

_RING_CATEGORIES = "ABC"
_TREE_CATEGORIES = 5
_TREE_EDGE, _RING_EDGE = 0, 1


def motifs(
    seed: int = 0, *, graphs: int = 1000, min_nodes: int = 12, max_nodes: int = 24
) -> PackedGraphs:
    """Draw random trees with a ring of six nodes grown in; the class is the order of its nodes.

    Every ring has two nodes of each of the categories 0, 1 and 2, in one of four orders (MOTIFS);
    the other nodes have the categories 3 .. 7 at random. So the categories of a graph's nodes, and
    its numbers of nodes and edges, say nothing of its class: who is next to whom does. Edges are of
    category 1 in the ring and 0 elsewhere.

    Args:
        seed: of everything random.
        graphs: G, at least 1; the classes are of equal size, up to one.
        min_nodes, max_nodes: nodes of a graph, 6 <= min_nodes <= max_nodes.

    Returns:
        PackedGraphs with x int64 [N, 1], edge_attr int64 [E, 1] and y int64 [G]; every edge in both
        directions, next to each other.
    """
    if graphs < 1:
        raise ValueError(f"graphs must be at least 1, got {graphs}")
    ring = len(MOTIFS[0])
    if not ring <= min_nodes <= max_nodes:
        raise ValueError(
            f"min_nodes and max_nodes must be {ring} <= min_nodes <= max_nodes, "
            f"got {min_nodes} and {max_nodes}"
        )
    rng = np.random.default_rng(seed)
    orders = np.array([[_RING_CATEGORIES.index(node) for node in motif] for motif in MOTIFS])
    classes = rng.permutation(np.arange(graphs) % len(MOTIFS))
    counts = rng.integers(min_nodes, max_nodes + 1, size=graphs)
    categories, halves, kinds = [], [], []
    for number, nodes in zip(classes, counts, strict=True):
        x = rng.integers(len(_RING_CATEGORIES), len(_RING_CATEGORIES) + _TREE_CATEGORIES, nodes)
        x[:ring] = orders[number]
        # the ring is 0 .. 5; every later node hangs on an earlier one
        child = np.arange(ring, nodes)
        parent = (rng.random(child.size) * child).astype(np.int64)
        source = np.concatenate((np.arange(ring), child))
        target = np.concatenate(((np.arange(ring) + 1) % ring, parent))
        # numbers must not give the ring away
        name = rng.permutation(nodes)
        categories.append(x[np.argsort(name)])
        halves.append(name[np.stack((source, target))])
        kinds.append(np.where(np.arange(nodes) < ring, _RING_EDGE, _TREE_EDGE))
    node_ptr = np.concatenate(([0], np.cumsum(counts)))
    # a graph has as many edges as nodes, and both directions of each
    half = np.concatenate(halves, axis=1) + np.repeat(node_ptr[:-1], counts)
    edges = np.stack((half, half[::-1]), axis=2).reshape(2, -1)
    return PackedGraphs(
        torch.from_numpy(np.concatenate(categories))[:, None],
        torch.from_numpy(edges),
        torch.from_numpy(node_ptr),
        torch.from_numpy(2 * node_ptr),
        y=torch.from_numpy(classes),
        edge_attr=torch.from_numpy(np.repeat(np.concatenate(kinds), 2))[:, None],
        node_categories=(len(_RING_CATEGORIES) + _TREE_CATEGORIES,),
        edge_categories=(2,),
    )
