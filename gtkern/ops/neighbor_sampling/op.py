"""sample_neighbors: the public function, its checks, and the torch.library op behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.graph import Adjacency, Graph
from gtkern.ops.neighbor_sampling import native, reference, table
from gtkern.ops.neighbor_sampling.table import SamplingTable

__all__ = ["Neighbors", "sample_neighbors"]

BACKENDS = ("reference", "cpu", "triton", "cuda")
METHODS = ("weighted", "uniform", "top")
FILLS = ("replacement", "pad")


class Neighbors(NamedTuple):
    """The sampled neighbours of one layer; -1 stands for none.

    Attributes:
        index: int32 [N, k]; the source nodes.
        edge: int64 [N, k]; the caller's numbers of the edges.
        type: uint8 [N, k], 0 where there is no neighbour; None when the graph has no edge types.
    """

    index: Tensor  # type: ignore[assignment]
    edge: Tensor
    type: Tensor | None


def sample_neighbors(
    graph: Graph,
    weight: Tensor | SamplingTable | None = None,
    k: int | Sequence[int] = 10,
    *,
    seed: int | Tensor | None,
    epoch: int = 0,
    method: str = "weighted",
    fill: str = "replacement",
    backend: str = "auto",
) -> tuple[Neighbors, ...]:
    """Draw k of the edges that come into every node, for one or several layers.

    "weighted" draws without replacement, each draw in proportion to the weights that are left.
    "uniform" does so with equal weights. "top" takes the k largest weights, ties to the earlier
    edge of the row.

    A row lists what it drew in the order of the graph's CSR; a row with fewer than k edges of
    positive weight keeps them all and is filled up behind them. A result depends on the seed,
    epoch, layer, and the edge's place in the graph alone: it is the same, bit for bit, on every
    backend and number of threads.

    Args:
        graph: the edges; N is its number of destinations.
        weight: [E] for all layers or [L, E], float, at most 2**100, in the order the graph was
            given its edges. Below 2**-100 it counts as 0, and an edge of weight 0 is never drawn.
            Needed by "weighted" and "top"; None for "uniform". Rounded to float32. On a GPU the
            values are not checked: an edge of negative, too large or NaN weight is never drawn.
            Or a `sampling_table` of this graph: worth the trouble where weights stay the same over
            several calls, which then read a few edges of each node in place of all.
        k: places for each node, at least 1: one number, or one for each layer. The number of
            layers L is that of weight or k; 1 when neither names one.
        seed: 64-bit integer or 0-d int64 CPU tensor; None draws one from torch's generator.
        epoch: 0 .. 2**32 - 1; each epoch draws anew.
        method: "weighted", "uniform" or "top".
        fill: what rows with fewer than k edges of positive weight are filled with: "replacement"
            draws in proportion to the weights, with replacement; "pad" puts -1. A row without
            such edges is -1 throughout.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        The neighbours of each layer, as `Neighbors`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
        NotImplementedError: the named backend cannot run here.

    Reference: README.md; Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir";
    Shirzad et al. 2024 (Spexphormer), algorithm 2, for the rule of filling up.
    """
    table.check_graph(graph)
    if method not in METHODS:
        raise ValueError(f"method must be one of {_names(METHODS)}, got {method!r}")
    if fill not in FILLS:
        raise ValueError(f"fill must be one of {_names(FILLS)}, got {fill!r}")
    if isinstance(epoch, bool) or not isinstance(epoch, int):
        raise TypeError(f"epoch must be an integer, got {type(epoch).__name__}")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be 0 .. 2**32 - 1, got {_check.short(epoch)}")
    weight, sums = _checked_weight(weight, method, graph)
    counts = _checked_counts(k, weight)
    chosen = _backends.resolve("sample_neighbors", backend, BACKENDS, graph.device, torch.float32)
    index, edge, kind = torch.ops.gtkern.sample_neighbors(
        list(graph.csr),
        weight,
        sums,
        counts,
        _check.seed("seed", seed),
        epoch,
        "top" if method == "top" else "draw",
        fill == "pad",
        chosen,
    )
    if graph.has_edge_types and not graph.num_edges:
        kind = torch.zeros_like(index, dtype=torch.uint8)
    layers = []
    begin = 0
    for count in counts:
        shape = (graph.num_dst_nodes, count)
        end = begin + shape[0] * shape[1]
        layers.append(
            Neighbors(
                index[begin:end].view(shape),
                edge[begin:end].view(shape),
                kind[begin:end].view(shape) if graph.has_edge_types else None,
            )
        )
        begin = end
    return tuple(layers)


def _names(values: tuple[str, ...]) -> str:
    return ", ".join(repr(value) for value in values)


def _checked_weight(
    weight: Tensor | SamplingTable | None, method: str, graph: Graph
) -> tuple[Tensor | None, list[Tensor]]:
    """The weights as float32 [1 or L, E], and of a table its prefix sums and row_ptr."""
    if method == "uniform":
        if weight is not None:
            kind = "a table" if isinstance(weight, SamplingTable) else "a tensor"
            raise ValueError(f"weight must be None with method='uniform', got {kind}")
        return None, []
    if weight is None:
        raise ValueError(f"weight must be given with method={method!r}, got None")
    if not isinstance(weight, SamplingTable):
        return table.checked_weight(weight, graph), []
    nodes, edges = weight.row_ptr.numel() - 1, weight.weight.size(1)
    if (nodes, edges) != (graph.num_dst_nodes, graph.num_edges):
        raise ValueError(
            f"weight must be a table of the graph ({graph.num_dst_nodes} nodes, {graph.num_edges} "
            f"edges), got one of {nodes} nodes, {edges} edges"
        )
    for part, value, dtype in (("weight", weight.weight, torch.float32),
                               ("prefix", weight.prefix, torch.uint32)):  # fmt: skip
        if value.dtype != dtype or value.shape != weight.weight.shape:
            raise ValueError(
                f"weight must be what sampling_table made, got one with {part} of {value.dtype} "
                f"{list(value.shape)}"
            )
    _check.same_device(graph=graph.csr.ptr, weight=weight.weight)
    return weight.weight, [weight.prefix, weight.row_ptr]


def _check_values(csr: Adjacency, weight: Tensor | None, sums: Sequence[Tensor]) -> None:
    """Check values on the CPU; on a GPU it would wait for the device."""
    if weight is None or weight.device.type != "cpu":
        return
    if not sums:
        table.check_values(weight)
    elif sums[1].data_ptr() != csr.ptr.data_ptr() and not torch.equal(sums[1], csr.ptr):
        raise ValueError("weight must be a table of the graph, got one of another graph")


def _checked_counts(k: int | Sequence[int], weight: Tensor | None) -> list[int]:
    """The number of places in each layer."""
    layers = 1 if weight is None else weight.size(0)
    if isinstance(k, int):
        counts = [k] * layers
    elif isinstance(k, Sequence) and not isinstance(k, str):
        counts = list(k)
    else:
        raise TypeError(f"k must be an integer or a list of them, got {type(k).__name__}")
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"k must hold integers, got {type(count).__name__}")
        if count < 1:
            raise ValueError(f"k must be at least 1, got {_check.short(count)}")
        if count >= 2**31:
            raise ValueError(f"k must be below 2**31, got {_check.short(count)}")
    if not counts:
        raise ValueError("k must name at least 1 layer, got an empty list")
    if layers > 1 and len(counts) != layers:
        raise ValueError(
            f"k must have one number for each of the {layers} layers of weight, got {len(counts)}"
        )
    return counts


torch.library.define(
    "gtkern::sample_neighbors",
    "(Tensor[] csr, Tensor? weight, Tensor[] sums, int[] k, Tensor seed, int epoch, "
    "str method, bool pad, str backend) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("gtkern::sample_neighbors", "CompositeExplicitAutograd")
def _sample(
    csr: Sequence[Tensor],
    weight: Tensor | None,
    sums: Sequence[Tensor],
    k: Sequence[int],
    seed: Tensor,
    epoch: int,
    method: str,
    pad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    adjacency = Adjacency(*csr)
    _check_values(adjacency, weight, sums)
    prefix = sums[0] if sums else None
    arguments = (adjacency, weight, prefix, list(k), int(seed), epoch, method, pad)
    if backend == "reference":
        return reference.forward(*arguments)
    if backend == "triton":
        from gtkern.ops.neighbor_sampling import triton

        return triton.forward(*arguments)
    return native.forward(backend, *arguments)


@torch.library.register_fake("gtkern::sample_neighbors")
def _sample_fake(
    csr: Sequence[Tensor],
    weight: Tensor | None,
    sums: Sequence[Tensor],
    k: Sequence[int],
    seed: Tensor,
    epoch: int,
    method: str,
    pad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    ptr, _, _, edge_type, _ = csr
    size = (ptr.size(0) - 1) * sum(k)
    return (
        ptr.new_empty(size, dtype=torch.int32),
        ptr.new_empty(size),
        edge_type.new_empty(size if edge_type.numel() else 0),
    )
