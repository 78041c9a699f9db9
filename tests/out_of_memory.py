"""Calls every room with less and less memory; run by test_memory.py in a process of its own.

For each room it prints a line: how many calls were refused for want of memory, and how many not.
A call that ends the process, or says something else, is a fault.
"""

from __future__ import annotations

import pathlib
import re
import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gtkern import BlockSparseMatrix, Graph, PairIndex, Ragged, ops, transforms
from gtkern.testing import random_graph

HEADROOM = (2**16, 2**18, 2**20, 2**21, 2**22, 2**24, 2**27)
"""Bytes beyond what the process has."""
NODES = 10_000
SAID = r"(can't allocate memory: you tried to allocate \d+ bytes|cannot allocate a result of shape)"


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def learned(result: Any, *leaves: Tensor) -> list[Tensor]:
    """A result and its gradients."""
    parts = list(result) if isinstance(result, tuple) else [result]
    gradients = torch.autograd.grad(parts[0].sum(), leaves)
    return [*(part.detach() for part in parts), *gradients]


def calls() -> dict[str, Callable[[], list[Tensor]]]:
    """One of each room, whose results have a few megabytes."""
    edges = torch.randint(NODES, (2, 6 * NODES), generator=torch.Generator().manual_seed(0))
    graph = random_graph("uniform", NODES, 6 * NODES, num_edge_types=3, seed=0)
    graph.csc  # noqa: B018
    both = Graph.from_edge_index(torch.cat((edges, edges.flip(0)), 1), NODES)
    both.is_symmetric()
    both.gcn_norm()
    ragged = Ragged.from_ptr(torch.arange(0, NODES + 1, 25))
    large = Ragged.from_ptr(torch.tensor([0, 6000]))
    every = PairIndex.from_tensor(torch.zeros(large.num_pairs, dtype=torch.uint8), large, 1)
    most = ops.select_tokens(torch.rand(6000), large, ratio=0.9)
    index = torch.randint(0, 5, (ragged.num_pairs,), dtype=torch.uint8)
    pairs = PairIndex.from_tensor(index, ragged, 5)
    neighbors = torch.randint(-1, NODES, (NODES, 8), dtype=torch.int32)
    matrix = BlockSparseMatrix.from_dense(torch.randn(256, 256), 32, keep=0.5)
    score, weight = torch.rand(NODES), torch.rand(graph.num_edges)
    chosen = ops.select_tokens(score, ragged, ratio=0.5)
    long = Ragged.from_ptr(torch.arange(0, 100 * NODES + 1, 25))
    scores = torch.rand(long.num_nodes)
    q, k, v, bias = leaf(NODES, 4, 12), leaf(NODES, 4, 12), leaf(NODES, 4, 12), leaf(3, 4)
    narrow = [leaf(NODES, 1, 4) for _ in range(3)]
    x, table, vector = leaf(NODES, 256), leaf(5, 4), leaf(4, 12)
    double = q.detach().double().requires_grad_()
    return {
        "Graph": lambda: [*Graph.from_edge_index(edges, NODES).csc],
        "sparse_attention": lambda: learned(
            ops.sparse_attention(q, k, v, graph, bias=bias, return_scores=True), q, k, v, bias
        ),
        "sparse_attention, narrow": lambda: learned(ops.sparse_attention(*narrow, graph), *narrow),
        "sparse_attention, double": lambda: learned(
            ops.sparse_attention(double, double, double, graph), double
        ),
        "additive_attention": lambda: learned(
            ops.additive_attention(q, k, v, graph, vector, return_scores=True), q, k, v, vector
        ),
        "sampled_attention": lambda: learned(
            ops.sampled_attention(q, k, v, neighbors, return_scores=True), q, k, v
        ),
        "ragged_attention": lambda: learned(
            ops.ragged_attention(q, k, v, ragged, bias=[(pairs, table)]), q, k, v, table
        ),
        "sample_neighbors": lambda: [*ops.sample_neighbors(graph, weight, [8, 8], seed=0)[0][:2]],
        "sampling_table": lambda: [ops.sampling_table(graph, weight).weight],
        "layer_batches": lambda: [
            ops.layer_batches(
                torch.arange(NODES // 2), ops.sample_neighbors(graph, weight, 8, seed=0)
            )[0].index
        ],
        "propagate": lambda: learned(ops.propagate(both, q.flatten(1), 0.2, steps=2), q),
        "block_sparse_linear": lambda: learned(ops.block_sparse_linear(x, matrix), x),
        "select_tokens": lambda: [ops.select_tokens(scores, long, ratio=0.3).index],
        "gather_tokens": lambda: learned(ops.gather_tokens(x, chosen), x),
        "scatter_tokens": lambda: [ops.scatter_tokens(x.detach()[: chosen.num_kept], chosen)],
        "drop_tokens": lambda: [*ops.drop_tokens(edges, chosen)],
        "gather_pairs": lambda: [ops.gather_pairs(every, most).index],
        "hop_distances": lambda: [
            transforms.hop_distances(torch.empty(2, 0, dtype=torch.int64), large.ptr, 5)
        ],
        "expander_edges": lambda: [transforms.expander_edges(20 * NODES, 6, seed=0)],
    }


def limit(headroom: int | None) -> None:
    """Let the process have so much more than it has; None: whatever it likes."""
    most = resource.RLIM_INFINITY
    if headroom is not None:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + headroom
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def starve(name: str, call: Callable[[], list[Tensor]]) -> None:
    """Print what came of a call with each of HEADROOM; raises where it was not as it should."""
    expected = call()
    refused = 0
    for headroom in HEADROOM:
        limit(headroom)
        try:
            call()
        except MemoryError:
            refused += 1
        except RuntimeError as error:
            if not re.search(SAID, str(error)):
                limit(None)
                raise
            refused += 1
        finally:
            limit(None)
    again = call()
    same = all(torch.equal(one, other) for one, other in zip(expected, again, strict=True))
    print(f"{name}: {refused} of {len(HEADROOM)} refused; then {'the same' if same else 'OTHER'}")
    sys.stdout.flush()


if __name__ == "__main__":
    for name, call in calls().items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        starve(name, call)
