"""ragged_attention as a room: calls to try, and bad ones."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from room import BadInput, Call, Room, Sample
from torch import Tensor

from gtkern import PairIndex, Ragged, ops
from gtkern.ops.ragged_attention.op import BACKENDS

DTYPES = {"uint8": torch.uint8, "int16": torch.int16}


def attend(**arguments: Any) -> Tensor:
    """The op; the contract names every tensor, so index_0 and table_0 stand for bias[0]."""
    count = sum(name.startswith("index_") for name in arguments)
    bias = [(arguments.pop(f"index_{m}"), arguments.pop(f"table_{m}")) for m in range(count)]
    return ops.ragged_attention(bias=arguments.pop("bias", bias), **arguments)


def ragged_of(sizes: Sequence[int]) -> Ragged:
    """The batch of graphs with these numbers of nodes."""
    return Ragged.from_ptr(torch.tensor([0, *itertools.accumulate(sizes)]))


def make(
    sizes: Sequence[int],
    *,
    heads: int = 2,
    width: int = 8,
    value_width: int | None = None,
    bias: Sequence[tuple[str, int]] = (),
    masked: float = 0.0,
    prefix: int | None = None,
    sets: Sequence[int] | None = None,
    values: int = 0,
    **options: Any,
) -> Call:
    """A call with unit-sized random arguments.

    Args:
        sizes: n_g of each graph.
        bias: dtype and number of entries of each index; tables have one row more.
        masked: share of pairs that each index masks, and all those of the first query.
        prefix: P; None: without.
        sets: that of each graph, as many as the largest number says; None: all see the same.
        values: seed of the arguments.
        options: of the op.
    """
    generator = torch.Generator().manual_seed(values)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    ragged = ragged_of(sizes)
    nodes = ragged.num_nodes
    value_width = width if value_width is None else value_width
    tensors = {
        "q": normal(nodes, heads, width),
        "k": normal(nodes, heads, width),
        "v": normal(nodes, heads, value_width),
    }
    axes = {"q": "dst", "k": "src", "v": "src"}
    others: dict[str, Any] = {"ragged": ragged}
    for m, (dtype, entries) in enumerate(bias):
        index = torch.randint(entries, (ragged.num_pairs,), generator=generator).to(DTYPES[dtype])
        if masked:
            hidden = torch.rand(ragged.num_pairs, generator=generator) < masked
            hidden[: max(sizes[:1], default=0)] = True
            index[hidden] = PairIndex.MASKED[index.dtype]
        others[f"index_{m}"] = PairIndex.from_tensor(index, ragged, entries)
        tensors[f"table_{m}"] = normal(entries + 1, heads)
        axes[f"table_{m}"] = "type"
    if prefix is not None:
        several = () if sets is None else (max(sets) + 1,)
        tensors["prefix_k"] = normal(*several, prefix, heads, width)
        tensors["prefix_v"] = normal(*several, prefix, heads, value_width)
        if sets is not None:
            others["prefix_set"] = torch.tensor(sets)
        axes |= {"prefix_k": "type", "prefix_v": "type"}
    return Call(tensors, axes, {**others, **options})


def indices(others: Mapping[str, Any]) -> dict[str, PairIndex]:
    return {name: value for name, value in others.items() if name.startswith("index_")}


def structure(others: Mapping[str, Any]) -> list[Tensor]:
    ragged = others["ragged"]
    return [ragged.ptr, ragged.pair_ptr, *(each.index for each in indices(others).values())]


def edges(others: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The keys and the queries of the pairs that no index masks."""
    query, key = others["ragged"].pairs()
    real = torch.ones_like(query, dtype=torch.bool)
    for each in indices(others).values():
        real &= each.index != PairIndex.MASKED[each.index.dtype]
    return key[real], query[real]


def orders(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    """Nodes change places inside their graph, queries and keys on their own."""
    spans = list(itertools.pairwise(call.others["ragged"].ptr.tolist()))

    def order() -> Tensor:
        parts = [first + torch.randperm(end - first, generator=generator) for first, end in spans]
        return torch.cat([torch.empty(0, dtype=torch.int64), *parts])

    return {"src": order(), "dst": order()}


def relabel(others: Mapping[str, Any], source_to: Tensor, destination_to: Tensor) -> dict[str, Any]:
    """The indices follow the nodes."""
    ragged = others["ragged"]
    query, key = ragged.pairs()
    local = torch.arange(ragged.num_nodes) - ragged.ptr[ragged.batch()]
    graph = ragged.batch()[query]
    to = (
        ragged.pair_ptr[graph]
        + local[destination_to[query]] * ragged.sizes()[graph]
        + local[source_to[key]]
    )
    moved = dict(others)
    for name, each in indices(others).items():
        index = torch.empty_like(each.index).index_copy(0, to, each.index)
        moved[name] = PairIndex.from_tensor(index, ragged, each.num_entries)
    return moved


def join(calls: list[Mapping[str, Any]]) -> dict[str, Any]:
    sizes = [size for others in calls for size in others["ragged"].sizes().tolist()]
    joined = {**calls[0], "ragged": ragged_of(sizes)}
    if "prefix_set" in joined:
        joined["prefix_set"] = torch.cat([others["prefix_set"] for others in calls])
    for name, each in indices(calls[0]).items():
        index = torch.cat([others[name].index for others in calls])
        joined[name] = PairIndex.from_tensor(index, joined["ragged"], each.num_entries)
    return joined


def saved_bytes(call: Call) -> int:
    """lse; of several tables the stack; of sets of prefixes the one that each row sees."""
    nodes, heads, _ = call.tensors["q"].shape
    tables = [value for name, value in call.tensors.items() if name.startswith("table_")]
    stacked = sum(table.numel() * table.element_size() for table in tables)
    wide = call.tensors["q"].dtype == torch.float64
    kept = (8 if wide else 4) * nodes * heads + (stacked if len(tables) > 1 else 0)
    return kept + (8 * nodes if "prefix_set" in call.others else 0)


def sample(name: str, sizes: Sequence[int], size: str = "small", **options: Any) -> Sample:
    return Sample(name, functools.partial(make, sizes, **options), size)


BYTE, SHORT = ("uint8", 5), ("int16", 300)

SAMPLES = (
    sample("plain", (2, 0, 3, 1), "tiny", width=3),
    sample("everything", (3, 0, 2, 1), "tiny", width=3, value_width=2, bias=(BYTE, ("int16", 4)),
           masked=0.2, prefix=2, scale=0.7, dropout=0.3, seed=11),
    sample("bias", (3, 2), "tiny", heads=1, width=2, value_width=3, bias=(("uint8", 3),),
           masked=0.3),
    sample("sets_of_prefixes", (3, 0, 2, 1, 1), "tiny", width=3, value_width=2, bias=(BYTE,),
           masked=0.2, prefix=2, sets=(2, 0, -1, 0, 2), values=1, dropout=0.3, seed=13),
    sample("one_node_graphs", (1, 1, 1), bias=(BYTE,)),
    sample("tables_of_one_entry", (6, 5), bias=(("uint8", 1), ("int16", 1)), scale=-0.5),
    sample("odd_heads_and_widths", (9, 17, 4), heads=3, width=7, value_width=5, bias=(BYTE,)),
    sample("three_tables", (9, 18), heads=5, bias=(BYTE, SHORT, BYTE), masked=0.1),
    sample("all_masked", (4, 3), bias=(BYTE,), masked=1.0),
    sample("all_masked_but_a_prefix", (4, 3), bias=(BYTE,), masked=1.0, prefix=3),
    sample("prefix", (5, 0, 18), heads=4, width=16, prefix=5),
    sample("prefix_and_bias", (5, 16), heads=3, width=5, bias=(BYTE,), prefix=12),
    sample("prefix_of_each_graph", (9, 17, 4, 18), heads=5, width=8, prefix=3, sets=(0, 2, -1, 0)),
    sample("empty_prefix", (4, 3), prefix=0),
    sample("prefix_alone", (0, 0), bias=(BYTE,), prefix=2),
    sample("no_graphs", (), bias=(BYTE,), prefix=2),
    sample("dropout", (19, 2, 16), heads=5, width=4, dropout=0.25, seed=-3, prefix=2),
    sample("many_graphs", tuple(range(0, 40, 5)), heads=4, width=10, bias=(BYTE,), masked=0.1),
    sample("one_large_graph", (1,) * 30 + (70,), heads=1, width=4, bias=(BYTE,), masked=0.1,
           prefix=2),
    sample("more_graphs", tuple(range(40)), "broad", heads=4, width=10, bias=(BYTE,), masked=0.1),
    sample("several_tasks", (25, 31, 0, 48, 16, 33, 2, 64), "broad", heads=6, width=24,
           bias=(("uint8", 40),), prefix=40, sets=(3, 1, 3, 0, -1, 3, 9, 1)),
    sample("nci1", (29, 34, 17, 111, 8, 25, 40), "broad", heads=4, width=16),
    sample("molhiv", (25, 31, 0, 48, 16, 33, 2, 64, 100), "broad", heads=32, width=24,
           bias=(("uint8", 40),), prefix=3),
    sample("molhiv_dropout", (25, 31, 48, 16), "broad", heads=8, width=32, dropout=0.1, seed=5,
           bias=(("uint8", 40), SHORT), masked=0.05),
    sample("large", (700, 3, 90), "broad", heads=2, width=16, bias=(BYTE,), prefix=4),
    sample("width_64", (50, 70), "broad", heads=3, width=64, bias=(BYTE,)),
    sample("width_256", (20, 33), "broad", width=256, value_width=200),
    sample("width_1", (60, 50, 9), "broad", heads=5, width=1),
    sample("many_heads", (20, 9, 33), "broad", heads=37, width=3, bias=(BYTE,)),
    sample("large_table", (40, 60), "broad", heads=4, bias=(("int16", 32_767),)),
)  # fmt: skip


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def index_for(pair_count: int) -> PairIndex:
    return PairIndex(torch.zeros(pair_count, dtype=torch.uint8), 3)


def one(index: Any, table: Any) -> Any:
    return change(bias=[(index, table)])


SETS = {"prefix_k": torch.ones(2, 2, 2, 3), "prefix_v": torch.ones(2, 2, 2, 3)}

BAD = (
    BadInput("q_no_tensor", change(q=[1.0]), TypeError, r"^q must be a tensor, got list"),
    BadInput("q_integer", change(q=lambda a: a["q"].long()), TypeError,
             r"^q must be float32, bfloat16, float16 or float64, got torch.int64"),
    BadInput("q_rank", change(q=lambda a: a["q"][0]), ValueError,
             r"^q must have shape \[N, H, D\], got \[2, 3\]"),
    BadInput("q_rows", change(q=lambda a: a["q"][1:]), ValueError,
             r"^q must have 6 rows \(ragged.num_nodes\), got 5"),
    BadInput("no_heads", change(**{name: torch.ones(6, 0, 3) for name in "qkv"}), ValueError,
             r"^q must have at least 1 head, got 0"),
    BadInput("k_heads", change(k=lambda a: a["k"][:, :1]), ValueError,
             r"^k must have shape \[N, H, D\] = \[6, 2, 3\], got \[6, 1, 3\]"),
    BadInput("v_rows", change(v=lambda a: a["v"][1:]), ValueError,
             r"^v must have shape \[N, H, Dv\] = \[6, 2, 3\], got \[5, 2, 3\]"),
    BadInput("k_dtype", change(k=lambda a: a["k"].half()), TypeError,
             r"^k must have the dtype of q \(torch.float32\), got torch.float16"),
    BadInput("k_device", change(k=lambda a: a["k"].to("meta")), ValueError,
             r"^k must be on the device of q \(cpu\), got meta"),
    BadInput("too_wide", change(v=torch.ones(6, 2, 257)), ValueError,
             r"^v must have a head width of 1 \.\. 256, got 257"),
    BadInput("ragged_tensor", change(ragged=torch.tensor([0, 6])), TypeError,
             r"^ragged must be a Ragged, got Tensor"),
    BadInput("bias_no_sequence", change(bias=index_for(14)), TypeError,
             r"^bias must be a sequence of \(index, table\), got PairIndex"),
    BadInput("bias_no_pair", change(bias=[index_for(14)]), TypeError,
             r"^bias\[0\] must be a pair \(index, table\), got PairIndex"),
    BadInput("bias_bare_index", one(torch.zeros(14, dtype=torch.uint8), torch.ones(3, 2)),
             TypeError, r"^bias\[0\]\[0\] must be a PairIndex, got Tensor"),
    BadInput("bias_other_batch", one(index_for(15), torch.ones(3, 2)), ValueError,
             r"^bias\[0\]\[0\] must have 14 pairs \(ragged.num_pairs\), got 15"),
    BadInput("bias_device", one(index_for(14).to("meta"), torch.ones(3, 2)), ValueError,
             r"^bias\[0\]\[0\] must be on the device of ragged \(cpu\), got meta"),
    BadInput("table_no_tensor", one(index_for(14), [1.0]), TypeError,
             r"^bias\[0\]\[1\] must be a tensor, got list"),
    BadInput("table_dtype", one(index_for(14), torch.ones(3, 2).half()), TypeError,
             r"^bias\[0\]\[1\] must have the dtype of q \(torch.float32\) or float32, got "
             r"torch.float16"),
    BadInput("table_rows", one(index_for(14), torch.ones(2, 2)), ValueError,
             r"^bias\[0\]\[1\] must have shape \[B, H\] with B at least 3 .* H = 2, got \[2, 2\]"),
    BadInput("table_heads", one(index_for(14), torch.ones(3, 1)), ValueError,
             r"^bias\[0\]\[1\] must have shape \[B, H\] .* got \[3, 1\]"),
    BadInput("two_table_dtypes",
             lambda right: {
                 **{name: right[name].half() for name in "qkv"},
                 "bias": [(index_for(14), torch.ones(3, 2)),
                          (index_for(14), torch.ones(3, 2).half())],
             },
             TypeError, r"^bias\[1\]\[1\] must have the dtype of bias\[0\]\[1\] \(torch.float32\)"),
    BadInput("table_device", one(index_for(14), torch.ones(3, 2, device="meta")), ValueError,
             r"^bias\[0\] must be on the device of q \(cpu\), got meta"),
    BadInput("prefix_k_alone", change(prefix_k=torch.ones(2, 2, 3)), ValueError,
             r"^prefix_v must be given too"),
    BadInput("prefix_v_alone", change(prefix_v=torch.ones(2, 2, 3)), ValueError,
             r"^prefix_k must be given too"),
    BadInput("prefix_set_alone", change(prefix_set=torch.zeros(4).long()), ValueError,
             r"^prefix_k and prefix_v must be given too"),
    BadInput("prefix_set_of_one_set", change(**{name: torch.ones(2, 2, 3) for name in SETS},
                    prefix_set=torch.zeros(4).long()), ValueError,
             r"^prefix_k must have shape \[S, P, H, D\], got \[2, 2, 3\]"),
    BadInput("prefix_sets_unequal",
             change(prefix_k=torch.ones(2, 2, 2, 3), prefix_v=torch.ones(3, 2, 2, 3),
                    prefix_set=torch.zeros(4).long()),
             ValueError, r"^prefix_v must have shape \[S, P, H, Dv\] = \[2, 2, 2, 3\], got"),
    BadInput("prefix_set_no_tensor", change(**SETS, prefix_set=[0, 0, 0, 0]), TypeError,
             r"^prefix_set must be a tensor, got list"),
    BadInput("prefix_set_dtype", change(**SETS, prefix_set=torch.zeros(4)), TypeError,
             r"^prefix_set must be int64, got torch.float32"),
    BadInput("prefix_set_graphs", change(**SETS, prefix_set=torch.zeros(6).long()), ValueError,
             r"^prefix_set must have shape \[G\] = \[4\], got \[6\]"),
    BadInput("prefix_set_range", change(**SETS, prefix_set=torch.tensor([0, 1, 2, 0])), ValueError,
             r"^prefix_set must be -1 \.\. 1 \(sets - 1\), got 2"),
    BadInput("prefix_set_negative", change(**SETS, prefix_set=torch.tensor([0, -2, 1, 0])),
             ValueError, r"^prefix_set must be -1 \.\. 1 \(sets - 1\), got -2"),
    BadInput("prefix_set_device",
             change(**SETS, prefix_set=torch.zeros(4, dtype=torch.int64, device="meta")),
             ValueError, r"^prefix_set must be on the device of q \(cpu\), got meta"),
    BadInput("no_sets",
             change(**{name: torch.ones(0, 2, 2, 3) for name in SETS},
                    prefix_set=torch.full((4,), -1)),
             ValueError, r"^prefix_k must have at least 1 set, got 0"),
    BadInput("prefix_width", change(prefix_k=torch.ones(2, 2, 4), prefix_v=torch.ones(2, 2, 3)),
             ValueError, r"^prefix_k must have shape \[P, H, D\] = \[2, 2, 3\], got \[2, 2, 4\]"),
    BadInput("prefix_slots", change(prefix_k=torch.ones(2, 2, 3), prefix_v=torch.ones(3, 2, 3)),
             ValueError, r"^prefix_v must have shape \[P, H, Dv\] = \[2, 2, 3\], got \[3, 2, 3\]"),
    BadInput("prefix_dtype",
             change(prefix_k=torch.ones(2, 2, 3).half(), prefix_v=torch.ones(2, 2, 3)),
             TypeError, r"^prefix_k must have the dtype of q \(torch.float32\), got torch.float16"),
    BadInput("scale_infinite", change(scale=math.inf), ValueError, r"^scale must be in \["),
    BadInput("dropout_one", change(dropout=1.0), ValueError, r"^dropout must be in \[0, 1\)"),
    BadInput("seed_float", change(dropout=0.5, seed=1.5), TypeError,
             r"^seed must be an integer, got float"),
    BadInput("backend_unknown", change(backend="numpy"), ValueError,
             r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
)  # fmt: skip

ROOM = Room(
    op=attend,
    samples=SAMPLES,
    results=lambda call: [("out", "dst")],
    structure=structure,
    edges=edges,
    relabel=relabel,
    join=join,
    saved_bytes=saved_bytes,
    orders=orders,
    backends=BACKENDS,
    bad=BAD,
)
