"""Seeded random graphs with the size, the degree law and the locality of real ones."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LAWS", "REAL", "SIZES", "BatchSpec", "GraphSpec", "edge_index"]

LAWS = ("regular", "lognormal", "powerlaw", "hub")

SIZES = {
    "nci1": (3, 11, 17, 21, 27, 35, 46, 80, 111),
    "molhiv": (2, 9, 15, 18, 23, 29, 38, 70, 222),
    "patterns": (44, 60, 85, 100, 118, 135, 150, 175, 190),
}
"""By data set, the quantiles (at _SHARES) of its graphs' numbers of nodes: NCI1 (4,110 graphs),
ogbg-molhiv (41,127), and a batch of graphs as large as those of PATTERN."""

_SHARES = (0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)

_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class GraphSpec:
    """What a generated graph looks like.

    Attributes:
        num_src: N_src.
        num_dst: N_dst; sources may be more than destinations, the destinations are a prefix.
        num_edges: E, reached exactly.
        law: of the number of edges that come into a node. "regular": all equal; "lognormal" with
            sigma = skew; "powerlaw" with P(degree) ~ degree ** -skew; "hub": `skew` nodes with
            10,000 edges (or half of N_src, if that is less) and the others equal.
        skew: the parameter of the law.
        locality: share of the edges whose source lies within num_src / 64 of its destination's
            number; the others come from anywhere, popular sources more often (on square graphs a
            node is a source as often as it is a destination).
        simple: no edge occurs twice. Costs a sort.
        seed: of everything random here.
    """

    num_src: int
    num_dst: int
    num_edges: int
    law: str = "lognormal"
    skew: float = 1.0
    locality: float = 0.0
    simple: bool = True
    seed: int = 0

    def scaled(self, factor: float) -> GraphSpec:
        """A graph of `factor` times as many nodes and edges, of the same law."""
        num_src = max(16, int(self.num_src * factor))
        num_dst = num_src if self.num_dst == self.num_src else max(16, int(self.num_dst * factor))
        degree = min(self.num_edges / self.num_dst, num_src / 4)
        return replace(self, num_src=num_src, num_dst=num_dst, num_edges=int(num_dst * degree))


@dataclass(frozen=True)
class BatchSpec:
    """A batch of many graphs with the sizes of a data set's, for ops that look at nodes alone.

    Attributes:
        law: a name of SIZES, whose sizes are drawn from; or one size, as text, for all graphs.
        num_graphs: G.
        seed: of the draw.
    """

    law: str
    num_graphs: int = 128
    seed: int = 0

    def sizes(self) -> _Array:
        """int64 [G]: the number of nodes of each graph."""
        if self.law.isdigit():
            return np.full(self.num_graphs, int(self.law), dtype=np.int64)
        share = np.random.default_rng(self.seed).random(self.num_graphs)
        drawn: _Array = np.interp(share, _SHARES, SIZES[self.law]).round().astype(np.int64)
        return drawn

    @property
    def num_src(self) -> int:
        """N."""
        return int(self.sizes().sum())

    @property
    def num_dst(self) -> int:
        """N."""
        return self.num_src

    @property
    def num_edges(self) -> int:
        """Pairs of nodes of one graph."""
        return int((self.sizes() ** 2).sum())

    def scaled(self, factor: float) -> BatchSpec:
        """A batch of `factor` times as many graphs; one graph of `factor` times as many nodes."""
        if self.num_graphs == 1 and self.law.isdigit():
            return replace(self, law=str(max(2, int(int(self.law) * factor))))
        return replace(self, num_graphs=max(2, int(self.num_graphs * factor)))


def _real(num_nodes: int, num_edges: int, law: str, skew: float, **more: Any) -> GraphSpec:
    return GraphSpec(num_nodes, num_nodes, num_edges, law=law, skew=skew, **more)


REAL = {
    "cora": _real(2_708, 10_556, "lognormal", 1.6),
    "pubmed": _real(19_717, 88_648, "lognormal", 1.1),
    "arxiv": _real(169_343, 2_332_486, "powerlaw", 2.5),
    "amazon0505": _real(410_236, 4_878_874, "lognormal", 1.3, locality=0.5),
    "yelp": _real(716_847, 13_954_819, "lognormal", 1.2),
    "reddit": _real(232_965, 114_615_892, "lognormal", 0.88, simple=False),
    "products": _real(2_449_029, 123_718_280, "lognormal", 1.35, simple=False),
    "github": _real(37_700, 578_006, "hub", 1),
}
"""Stand-ins by the name of the graph whose numbers of nodes and of directed edges they have. The
skews were chosen by the largest degree, to within a fifth of the real graph's as remembered (not
verified): 168, 171, 13,161, 2,760, unknown for yelp, 21,657, 17,481 and 9,458. The locality of
amazon0505 is a guess, and none is assumed elsewhere. In reddit and products edges may occur twice.
"""


@functools.lru_cache(maxsize=2)
def edge_index(spec: GraphSpec) -> Tensor:
    """The edges of `spec` in random order: int64 [2, E]; row 0 the sources, row 1 the destinations.

    Raises:
        ValueError: an unknown law, or more edges than a simple graph of this size has room for.
    """
    if spec.law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}, got {spec.law!r}")
    if spec.simple and spec.num_edges > spec.num_src * spec.num_dst // 2:
        raise ValueError(
            f"num_edges must be at most half of N_src * N_dst = {spec.num_src * spec.num_dst}, "
            f"got {spec.num_edges}"
        )
    rng = np.random.default_rng(spec.seed)
    degree = _degrees(spec, rng)
    destination = np.repeat(np.arange(spec.num_dst, dtype=np.int64), degree)
    source = _sources(spec, destination, rng)
    if spec.simple:
        _redraw_duplicates(spec, source, destination, rng)
    order = rng.permutation(spec.num_edges)
    return torch.from_numpy(np.stack((source[order], destination[order])))


def _degrees(spec: GraphSpec, rng: np.random.Generator) -> _Array:
    """int64 [N_dst] that sums to E; no node has more than half of all sources."""
    nodes, most = spec.num_dst, max(1, spec.num_src // 2)
    if spec.law == "lognormal":
        share = rng.lognormal(0.0, spec.skew, nodes)
    elif spec.law == "powerlaw":
        share = rng.pareto(spec.skew - 1.0, nodes) + 1.0
    else:
        share = np.ones(nodes)
    fixed = np.zeros(nodes, dtype=np.int64)
    if spec.law == "hub":
        hubs = rng.choice(nodes, int(spec.skew), replace=False)
        fixed[hubs] = min(10_000, most)
        share[hubs] = 0.0
    left = spec.num_edges - int(fixed.sum())
    for _ in range(100):
        # what the cap cuts off goes to the nodes below it, in proportion to their shares
        degree = np.minimum(share * (left / share.sum()), most)
        short = left - degree.sum()
        if short < 0.5:
            break
        share = np.where(
            degree < most, share * (1 + short / max(degree[degree < most].sum(), 1)), share
        )
    degree = np.floor(degree).astype(np.int64)
    room = np.flatnonzero((share > 0) & (degree < most))
    missing = left - int(degree.sum())
    degree += np.bincount(rng.choice(room, missing), minlength=nodes) if missing else 0
    total: _Array = fixed + degree
    return total


def _sources(spec: GraphSpec, destination: _Array, rng: np.random.Generator) -> _Array:
    edges = destination.size
    if spec.num_src == spec.num_dst:
        source = destination[rng.integers(0, edges, edges)]
    else:
        source = rng.integers(0, spec.num_src, edges)
    if spec.locality > 0:
        near = np.flatnonzero(rng.random(edges) < spec.locality)
        reach = max(1, spec.num_src // 64)
        position = destination[near] * spec.num_src // spec.num_dst
        source[near] = (position + rng.integers(-reach, reach + 1, near.size)) % spec.num_src
    return source


def _redraw_duplicates(
    spec: GraphSpec, source: _Array, destination: _Array, rng: np.random.Generator
) -> None:
    """Give every second copy of an edge another source, uniformly, until there is none."""
    while True:
        key = destination * spec.num_src + source
        order = np.argsort(key, kind="stable")
        again = order[1:][np.diff(key[order]) == 0]
        if again.size == 0:
            return
        source[again] = rng.integers(0, spec.num_src, again.size)
