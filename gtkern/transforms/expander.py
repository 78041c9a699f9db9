"""Random regular expander graphs, tested for their spectral gap.

The draws come from Philox keyed by the seed, so a seed means one graph everywhere: native code and
the NumPy code below, used where the native module was not built, return the same edges.

Reference: Shirzad et al. 2023 (Exphormer), section 3.2 and appendix C; Friedman 2003, "A proof of
Alon's second eigenvalue conjecture" (the permutation model).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from torch import Tensor

from gtkern import _check, random

try:
    from gtkern import _graph as _native
except ImportError:
    _native = None  # type: ignore[assignment]

__all__ = ["ALGORITHMS", "expander_edges", "spectral_gap"]

ALGORITHMS = ("hamiltonian", "random_d", "random_d_2")
COMPLETE_UP_TO = 10
"""Graphs with at most this many nodes get every edge instead of a random few."""
UNTESTED_ABOVE = 100_000
"""With more nodes the first draw is taken: there its gap is all but certain."""
SLACK = 0.1
"""How far below the gap of a Ramanujan graph a draw may stay."""

_RESIDUAL = 1e-3
_MAX_NODES = 2**31 - 1
_STEPS_BETWEEN_CHECKS = 10
_MAX_STEPS = 500


def expander_edges(
    num_nodes: int,
    degree: int,
    *,
    algorithm: str = "hamiltonian",
    seed: int | None = None,
    remove_duplicates: bool = False,
    max_tries: int = 100,
) -> Tensor:
    """Draw a random 2d-regular multigraph that is an expander.

    The first draw is returned whose spectral gap is at least 2d - 2 sqrt(2d - 1) - 0.1, nearly the
    best any 2d-regular graph has; if none of `max_tries` is, the best one. Graphs of more than
    100,000 nodes are not tested. Up to 10 nodes the complete graph without self loops is returned.

    Args:
        num_nodes: N, 0 .. 2**31 - 1.
        degree: d >= 1. Every node gets 2d edges in and 2d out; at most N - 1 counts for d.
        algorithm: "hamiltonian", d random cycles through all nodes; "random_d", d random
            permutations p with edges i -> p(i), self loops and repetitions possible; "random_d_2",
            one random matching of d copies of the nodes with d other copies.
        seed: 64-bit integer; default: drawn from torch's generator.
        remove_duplicates: drop self loops and repeated edges, and sort by (source, destination);
            the graph is then no longer regular.
        max_tries: draws to test, >= 1.

    Returns:
        int64 [2, E] on the CPU, both directions of every edge. Without `remove_duplicates`,
        E = 2dN and column e + E/2 is column e reversed.

    Raises:
        TypeError: an argument is no integer. ValueError: out of range, or no such algorithm.
    """
    nodes = _integer("num_nodes", num_nodes, 0, _MAX_NODES)
    degree = _integer("degree", degree, 1, _MAX_NODES)
    tries = _integer("max_tries", max_tries, 1, _MAX_NODES)
    _check.flag("remove_duplicates", remove_duplicates)
    if algorithm not in ALGORITHMS:
        names = ", ".join(repr(name) for name in ALGORITHMS)
        raise ValueError(f"algorithm must be one of {names}, got {algorithm!r}")
    key = int(_check.seed("seed", seed)) % 2**64
    if nodes <= COMPLETE_UP_TO:
        edges = np.argwhere(~np.eye(nodes, dtype=bool)).T
        return torch.from_numpy(np.ascontiguousarray(edges, dtype=np.int64))
    degree = min(degree, nodes - 1)
    least_gap = max(0.0, 2 * degree - 2 * math.sqrt(2 * degree - 1) - SLACK)
    best = _best_expander if _native is None else _native.best_expander
    tries = 0 if nodes > UNTESTED_ABOVE else tries
    edges, _ = best(algorithm, nodes, degree, key, tries, least_gap, _RESIDUAL, remove_duplicates)
    return torch.from_numpy(edges)


def spectral_gap(edge_index: Tensor, num_nodes: int) -> float:
    """The second smallest eigenvalue of the Laplacian, degree - adjacency: 0 when disconnected.

    Computed by the Lanczos method until the residual is below 1e-3; the error is far less for any
    but the most clustered spectra.

    Args:
        edge_index: int64 [2, E] on the CPU, both directions of every edge; repeated edges count
            repeatedly.
        num_nodes: N, 1 .. 2**31 - 1.

    Raises:
        TypeError: `edge_index` is no int64 tensor. ValueError: wrong shape, or out of range.
    """
    _check.tensor("edge_index", edge_index)
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"edge_index must have shape [2, E], got {list(edge_index.shape)}")
    if edge_index.dtype != torch.int64:
        raise TypeError(f"edge_index must be int64, got {edge_index.dtype}")
    if edge_index.device.type != "cpu":
        raise ValueError(f"edge_index must be on cpu, got {edge_index.device}")
    nodes = _integer("num_nodes", num_nodes, 1, _MAX_NODES)
    if edge_index.numel() > 0:
        low, high = (int(value) for value in torch.aminmax(edge_index))
        if low < 0 or high >= nodes:
            wrong = low if low < 0 else high
            raise ValueError(f"edge_index must be 0 .. {nodes - 1} (num_nodes - 1), got {wrong}")
    gap = _spectral_gap if _native is None else _native.spectral_gap
    return float(gap(edge_index.numpy(), nodes, _RESIDUAL))


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} .. {high}, got {_check.short(int(value))}")
    return int(value)


# The twin of csrc/graph, for machines without a C++ compiler.


def _best_expander(
    algorithm: str,
    num_nodes: int,
    degree: int,
    seed: int,
    max_tries: int,
    least_gap: float,
    residual: float,
    remove_duplicates: bool,
) -> tuple[np.ndarray, float]:
    best, best_gap = np.empty((2, 0), dtype=np.int64), -1.0
    if max_tries == 0:
        best = _draw(algorithm, num_nodes, degree, seed, 0)
    for attempt in range(max_tries):
        edges = _draw(algorithm, num_nodes, degree, seed, attempt)
        gap = _spectral_gap(edges, num_nodes, residual)
        if gap > best_gap:
            best, best_gap = edges, gap
        if best_gap >= least_gap:
            break
    if remove_duplicates:
        keys = np.unique((best[0] * num_nodes + best[1])[best[0] != best[1]])
        best = np.stack((keys // num_nodes, keys % num_nodes))
    return best, best_gap


def _draw(algorithm: str, num_nodes: int, degree: int, seed: int, attempt: int) -> np.ndarray:
    if algorithm == "random_d_2":
        order = _permutation(num_nodes * degree, seed, attempt, 0)
        half = np.stack((np.arange(order.size) % num_nodes, order % num_nodes))
    else:
        orders = [_permutation(num_nodes, seed, attempt, number) for number in range(degree)]
        if algorithm == "hamiltonian":
            pairs = [np.stack((order, np.roll(order, 1))) for order in orders]
        else:
            pairs = [np.stack((np.arange(num_nodes), order)) for order in orders]
        half = np.concatenate(pairs, axis=1)
    return np.concatenate((half, half[::-1]), axis=1)


def _permutation(count: int, seed: int, attempt: int, number: int) -> np.ndarray:
    item = torch.arange(count)
    words = random.philox(seed, (item & 0xFFFFFFFF, (item >> 32) + number, attempt, 0)).numpy()
    keys = words[:, 1].astype(np.uint64) << np.uint64(32) | words[:, 0].astype(np.uint64)
    return np.argsort(keys, kind="stable")


def _spectral_gap(edges: np.ndarray, num_nodes: int, residual: float) -> float:
    weights = np.ones(edges.shape[1])
    adjacency = scipy.sparse.csr_array(
        (weights, (edges[1], edges[0])), shape=(num_nodes, num_nodes)
    )
    degree = np.bincount(edges[1], minlength=num_nodes).astype(np.float64)
    words = random.philox(0, (torch.arange(num_nodes), 0, 0, 1)).numpy()
    basis = words[:, 0] / 2.0**32
    basis -= basis.mean()
    length = np.linalg.norm(basis)
    if length == 0:
        return 0.0
    basis /= length
    previous, coupling = np.zeros(num_nodes), 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    max_steps = min(_MAX_STEPS, num_nodes)
    for step in range(1, max_steps + 1):
        product = adjacency @ basis - degree * basis - coupling * previous
        diagonal.append(float(product @ basis))
        product -= diagonal[-1] * basis
        product -= product.mean()
        coupling = float(np.linalg.norm(product))
        exhausted = coupling <= 1e-10 * (1 + degree.max()) or step == max_steps
        if exhausted or step % _STEPS_BETWEEN_CHECKS == 0:
            values, vectors = scipy.linalg.eigh_tridiagonal(
                diagonal, off_diagonal, select="i", select_range=(step - 1, step - 1)
            )
            if exhausted or coupling * abs(vectors[-1, 0]) <= residual:
                return max(0.0, -float(values[0]))
        off_diagonal.append(coupling)
        previous, basis = basis, product / coupling
    raise AssertionError("the last step returns")
