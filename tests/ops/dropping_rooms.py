"""The ops of token_dropping as rooms: calls to try, and bad ones."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from room import (
    BadInput,
    Call,
    Room,
    Sample,
)
from torch import Tensor

from gtkern import Ragged, ops
from gtkern.ops import Selection
from gtkern.ops.token_dropping.op import BACKENDS


def ragged_of(sizes: Sequence[int]) -> Ragged:
    """The batch of graphs with these numbers of nodes."""
    return Ragged.from_ptr(torch.tensor([0, *itertools.accumulate(sizes)]))


def keeping(ragged: Ragged, kept: Tensor) -> Selection:
    """The selection of the tokens marked in bool [N]."""
    count = torch.zeros(ragged.num_graphs, dtype=torch.int64).index_add(
        0, ragged.batch(), kept.long()
    )
    return ops.select_tokens(kept.float(), ragged, k=count, backend="reference")


def some_of(sizes: Sequence[int], share: float = 0.5, seed: int = 1) -> Selection:
    """A selection of about this share of the tokens, at random."""
    ragged = ragged_of(sizes)
    generator = torch.Generator().manual_seed(seed)
    return keeping(ragged, torch.rand(ragged.num_nodes, generator=generator) < share)


def normal(shape: Sequence[int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Moving rows: "src" are the rows that are read, "dst" those that are written.


def gather(gated: bool = True, **arguments: Any) -> Tensor:
    """The op; a gate that is not to be used still counts the rows written."""
    gate = arguments.pop("gate")
    return ops.gather_tokens(gate=gate if gated else None, **arguments)


def scatter(filled: bool = True, **arguments: Any) -> Tensor:
    """The op; a fill that is not to be used still counts the rows written."""
    fill = arguments.pop("fill")
    return ops.scatter_tokens(fill=fill if filled else None, **arguments)


def make_gather(sizes: Sequence[int], width: int, share: float = 0.5, gated: bool = True) -> Call:
    selection = some_of(sizes, share)
    tensors = {
        "x": normal((selection.ragged.num_nodes, 2, width)),
        "gate": normal((selection.num_kept,), 1),
    }
    return Call(tensors, {"x": "src", "gate": "dst"}, {"selection": selection, "gated": gated})


def make_scatter(sizes: Sequence[int], width: int, share: float = 0.5, filled: bool = True) -> Call:
    selection = some_of(sizes, share)
    tensors = {
        "y": normal((selection.num_kept, 2, width)),
        "fill": normal((selection.ragged.num_nodes, 2, width), 1),
    }
    return Call(tensors, {"y": "src", "fill": "dst"}, {"selection": selection, "filled": filled})


def structure(others: Mapping[str, Any]) -> list[Tensor]:
    if "ragged" in others:
        return [others["ragged"].ptr, others["ragged"].host_ptr]
    selection = others["selection"]
    return [selection.index, selection.position, selection.ragged.ptr, selection.kept_ptr]


def gather_edges(others: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    index = others["selection"].index
    return index, torch.arange(index.numel(), device=index.device)


def scatter_edges(others: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    kept, row = gather_edges(others)
    return row, kept


def node_order(ragged: Ragged, generator: torch.Generator) -> Tensor:
    """Nodes change places inside their graph."""
    spans = itertools.pairwise(ragged.ptr.tolist())
    parts = [first + torch.randperm(end - first, generator=generator) for first, end in spans]
    return torch.cat([torch.empty(0, dtype=torch.int64), *parts])


def both_orders(call: Call, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """New numbers of the nodes, and those that the kept tokens then have."""
    selection = call.others["selection"]
    nodes = node_order(selection.ragged, generator)
    return nodes, nodes[selection.index].argsort().argsort()


def gather_orders(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    nodes, kept = both_orders(call, generator)
    return {"src": nodes, "dst": kept}


def scatter_orders(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    nodes, kept = both_orders(call, generator)
    return {"src": kept, "dst": nodes}


def moved(others: Mapping[str, Any], nodes: Tensor) -> dict[str, Any]:
    """The structure with node i renamed nodes[i]."""
    selection = others["selection"]
    kept = torch.zeros(selection.ragged.num_nodes, dtype=torch.bool)
    kept[nodes[selection.index]] = True
    return {**others, "selection": keeping(selection.ragged, kept)}


def join(calls: list[Mapping[str, Any]]) -> dict[str, Any]:
    selections = [others["selection"] for others in calls]
    sizes = [size for each in selections for size in each.ragged.sizes().tolist()]
    kept = torch.cat([each.position >= 0 for each in selections])
    return {**calls[0], "selection": keeping(ragged_of(sizes), kept)}


def row_samples(make: Any, plain: str) -> tuple[Sample, ...]:
    def sample(name: str, sizes: Sequence[int], size: str = "small", **options: Any) -> Sample:
        return Sample(name, functools.partial(make, sizes, **options), size)

    return (
        sample("plain", (2, 0, 3, 1), "tiny", width=3),
        sample("copied", (5, 0, 7), width=4, **{plain: False}),
        sample("one_node_graphs", (1, 1, 1), width=2),
        sample("everything", (4, 3), width=5, share=1.0),
        sample("nothing", (4, 3), width=5, share=0.0),
        sample("no_graphs", (), width=4),
        sample("odd_width", (30, 1, 17), width=33, share=0.3),
        sample("batch", (29, 34, 17, 111, 8, 25, 40), "broad", width=128),
        sample("one_large_graph", (5_000,), "broad", width=8, share=0.7),
    )


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


GATHER = Room(
    op=gather,
    samples=row_samples(make_gather, "gated"),
    results=lambda call: [("out", "dst")],
    structure=structure,
    edges=gather_edges,
    relabel=lambda others, source_to, destination_to: moved(others, source_to),
    join=join,
    saved_bytes=lambda call: 0,
    orders=gather_orders,
    backends=BACKENDS,
    bad=(
        BadInput("selection_of_another_kind", change(selection=torch.arange(3)), TypeError,
                 r"^selection must be a Selection \(select_tokens makes one\), got Tensor"),
        BadInput("x_no_tensor", change(x=[1.0]), TypeError, r"^x must be a tensor, got list"),
        BadInput("x_rows", change(x=torch.zeros(5, 3)), ValueError,
                 r"^x must have shape \[N, ...\] with N = 6, got \[5, 3\]"),
        BadInput("x_a_number", change(x=torch.tensor(1.0)), ValueError,
                 r"^x must have shape \[N, ...\] with N = 6, got \[\]"),
        BadInput("x_device", change(x=torch.zeros(6, 3, device="meta")), ValueError,
                 r"^x must be on the device of selection \(cpu\), got meta"),
        BadInput("integers_with_a_gate", change(x=torch.zeros(6, 3, dtype=torch.int64)), TypeError,
                 r"^x must be float32, .* got torch.int64"),
        BadInput("gate_rows", change(gate=torch.ones(7)), ValueError,
                 r"^gate must have shape \[M\] = \[\d\], got \[7\]"),
        BadInput("gate_dtype", change(gate=lambda a: a["gate"].double()), TypeError,
                 r"^gate must have the dtype of x \(torch.float32\), got torch.float64"),
        BadInput("backend_unknown", change(backend="numpy"), ValueError,
                 r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
    ),
)  # fmt: skip

SCATTER = Room(
    op=scatter,
    samples=row_samples(make_scatter, "filled"),
    results=lambda call: [("out", "dst")],
    structure=structure,
    edges=scatter_edges,
    relabel=lambda others, source_to, destination_to: moved(others, destination_to),
    join=join,
    saved_bytes=lambda call: 0,
    orders=scatter_orders,
    backends=BACKENDS,
    bad=(
        BadInput("selection_of_another_kind", change(selection=None), TypeError,
                 r"^selection must be a Selection \(select_tokens makes one\), got NoneType"),
        BadInput("y_rows", change(y=torch.zeros(6, 2, 3)), ValueError,
                 r"^y must have shape \[M, ...\] with M = \d, got \[6, 2, 3\]"),
        BadInput("fill_width", change(fill=torch.zeros(6, 2, 4)), ValueError,
                 r"^fill must have shape \[N, ...\] = \[6, 2, 3\], got \[6, 2, 4\]"),
        BadInput("fill_dtype", change(fill=lambda a: a["fill"].half()), TypeError,
                 r"^fill must have the dtype of y \(torch.float32\), got torch.float16"),
        BadInput("fill_no_tensor", change(fill=0.0), TypeError,
                 r"^fill must be a tensor, got float"),
    ),
)  # fmt: skip


def mask(**arguments: Any) -> Tensor:
    backend = arguments["backend"]
    selection = ops.select_tokens(**arguments)
    return ops.scatter_tokens(selection.gate, selection, backend=backend)


def make_scores(
    sizes: Sequence[int], *, always: float = 0.0, shape: str = "plain", **options: Any
) -> Call:
    """A call on graphs of these sizes.

    Args:
        always: share of the tokens that are always kept.
        shape: "plain": normal; "ties": quarters; "steep": over many orders of magnitude.
    """
    ragged = ragged_of(sizes)
    values = normal((ragged.num_nodes,))
    if shape == "ties":
        values = (values * 4).round() / 4
    elif shape == "steep":
        values = values * 30
    if always:
        generator = torch.Generator().manual_seed(4)
        options["always_keep"] = torch.rand(ragged.num_nodes, generator=generator) < always
    if "k" not in options:
        options.setdefault("ratio", 0.5)
    return Call({"score": values}, {"score": "dst"}, {"ragged": ragged, **options})


def scores(name: str, sizes: Sequence[int], size: str = "small", **options: Any) -> Sample:
    return Sample(name, functools.partial(make_scores, sizes, **options), size)


def join_scores(calls: list[Mapping[str, Any]]) -> dict[str, Any]:
    sizes = [size for others in calls for size in others["ragged"].sizes().tolist()]
    joined = {**calls[0], "ragged": ragged_of(sizes)}
    for name in ("always_keep", "k"):
        if isinstance(calls[0].get(name), Tensor):
            joined[name] = torch.cat([others[name] for others in calls])
    return joined


def same_nodes(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    nodes = torch.arange(call.others["ragged"].num_nodes)
    return {"src": nodes, "dst": nodes}


GUMBEL = {"noise": "gumbel", "seed": 7}

SELECT = Room(
    op=mask,
    samples=(
        scores("plain", (2, 0, 3, 1), "tiny"),
        scores("noise", (5, 3), temperature=0.5, **GUMBEL),
        scores("always", (4, 6), "tiny", always=0.3, ratio=0.4),
        scores("by_count", (9, 4, 0, 2), k=3),
        scores("counts", (9, 1, 0, 2), k=torch.tensor([2, 9, 5, 0])),
        scores("everything", (7, 5), ratio=1.0, always=0.5),
        scores("ties", (40, 13), shape="ties", ratio=0.3),
        scores("steep", (17, 33), shape="steep", ratio=0.25, **GUMBEL),
        scores("more_forced_than_asked", (30, 6), always=0.9, ratio=0.1),
        scores("all_forced", (5, 3), always=1.0, **GUMBEL),
        scores("no_graphs", ()),
        scores("hundreds", (130, 97, 96, 64, 65), ratio=0.4, always=0.02, **GUMBEL),
        scores("batch", (29, 34, 17, 111, 8, 25, 40) * 8, "broad", **GUMBEL),
        scores("thousands", (3_000, 40_000, 5, 33_000), "broad", ratio=0.6, always=0.001, **GUMBEL),
        scores("thousands_with_ties", (33_000, 9_000), "broad", ratio=0.2, shape="ties"),
    ),
    results=lambda call: [("mask", "dst")],
    structure=structure,
    edges=lambda others: (torch.empty(0), torch.empty(0)),
    relabel=lambda others, source_to, destination_to: dict(others),
    join=join_scores,
    # the places of the kept tokens, which the selection holds too, and k or a seed
    saved_bytes=lambda call: 12 * call.tensors["score"].numel() + 64,
    orders=same_nodes,
    backends=BACKENDS,
    bad=(
        BadInput("ratio_and_k", change(k=2), ValueError,
                 r"^ratio or k must be given, one of them, got both"),
        BadInput("neither", change(ratio=None), ValueError,
                 r"^ratio or k must be given, one of them, got neither"),
        BadInput("ratio_zero", change(ratio=0.0), ValueError, r"^ratio must be in \(0, 1\], got 0"),
        BadInput("ratio_above", change(ratio=1.5), ValueError,
                 r"^ratio must be in \(0, 1\], got 1\.5"),
        BadInput("ratio_nan", change(ratio=math.nan), ValueError,
                 r"^ratio must be in \(0, 1\], got nan"),
        BadInput("k_zero", change(ratio=None, k=0), ValueError, r"^k must be at least 1, got 0"),
        BadInput("k_a_float", change(ratio=None, k=1.5), TypeError,
                 r"^k must be an integer or an int64 tensor, got float"),
        BadInput("k_floats", change(ratio=None, k=torch.ones(4)), TypeError,
                 r"^k must be an integer or an int64 tensor, got torch.float32"),
        BadInput("k_for_other_graphs", change(ratio=None, k=torch.tensor([1, 2])), ValueError,
                 r"^k must have shape \[G\] = \[4\], got \[2\]"),
        BadInput("k_negative", change(ratio=None, k=torch.tensor([1, 1, -2, 1])), ValueError,
                 r"^k must not be negative, got -2 for graph 2"),
        BadInput("score_no_tensor", change(score=[0.5]), TypeError,
                 r"^score must be a tensor, got list"),
        BadInput("score_integers", change(score=torch.arange(6)), TypeError,
                 r"^score must be float32, .* got torch.int64"),
        BadInput("score_rank", change(score=torch.zeros(6, 1)), ValueError,
                 r"^score must have shape \[N\], got \[6, 1\]"),
        BadInput("score_rows", change(score=torch.zeros(7)), ValueError,
                 r"^score must have shape \[N\] = \[6\], got \[7\]"),
        BadInput("score_nan", change(score=torch.tensor([0, 1, math.nan, 2, 3, 4])), ValueError,
                 r"^score must not hold NaN, got one at row 2"),
        BadInput("ragged_a_tensor", change(ragged=torch.tensor([0, 6])), TypeError,
                 r"^ragged must be a Ragged, got Tensor"),
        BadInput("always_keep_integers", change(always_keep=torch.ones(6).int()), TypeError,
                 r"^always_keep must be bool, got torch.int32"),
        BadInput("always_keep_rows", change(always_keep=torch.ones(5).bool()), ValueError,
                 r"^always_keep must have shape \[N\] = \[6\], got \[5\]"),
        BadInput("always_keep_device",
                 change(always_keep=torch.ones(6, dtype=torch.bool, device="meta")), ValueError,
                 r"^always_keep must be on the device of score \(cpu\), got meta"),
        BadInput("noise_unknown", change(noise="normal"), ValueError,
                 r"^noise must be None or 'gumbel', got 'normal'"),
        BadInput("temperature_zero", change(temperature=0.0), ValueError,
                 r"^temperature must be in \(0, .*got 0"),
        BadInput("seed_a_float", change(noise="gumbel", seed=0.5), TypeError,
                 r"^seed must be an integer, got float"),
        BadInput("backend_unknown", change(backend="numpy"), ValueError,
                 r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
    ),
)  # fmt: skip
