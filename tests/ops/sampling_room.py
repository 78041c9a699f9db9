"""sample_neighbors as a room: calls to try, and bad ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from room import (
    BadInput,
    Call,
    Room,
    Sample,
    graph_edges,
    graph_join,
    graph_relabel,
    graph_structure,
)
from torch import Tensor

from gtkern import Graph, ops
from gtkern.ops import Neighbors
from gtkern.testing import random_graph


def sample_flat(**arguments: Any) -> tuple[Tensor, ...]:
    """The op, with the tensors of its layers one after the other."""
    layers = ops.sample_neighbors(**arguments)
    return tuple(tensor for layer in layers for tensor in layer if tensor is not None)


def make(graph: Any, *, layers: int = 0, shape: str = "plain", **options: Any) -> Call:
    """A call on `graph()`.

    Args:
        layers: of the weights; 0: weight [E].
        shape: "plain": (0, 1); "steep": over twelve orders of magnitude; "ties": eleven values,
            0 among them; "rare": nine of ten are 0; "none": no weight.
    """
    graph = graph()
    generator = torch.Generator().manual_seed(5)
    size = (layers, graph.num_edges) if layers else (graph.num_edges,)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    weight = {
        "none": uniform,
        "plain": uniform,
        "steep": 10 ** (-12 * uniform),
        "ties": (uniform * 10).round(),
        "rare": torch.where(uniform < 0.1, uniform, 0.0),
    }[shape]
    tensors = {} if shape == "none" else {"weight": weight}
    return Call(tensors, {"weight": "edge"}, {"graph": graph, "seed": 3, **options})


def results(call: Call) -> list[tuple[str, str]]:
    """Names of the flat results."""
    k = call.others["k"]
    layers = len(k) if isinstance(k, list) else 1
    if "weight" in call.tensors and call.tensors["weight"].dim() == 2:
        layers = call.tensors["weight"].size(0)
    names = ["index", "edge", *(["type"] if call.others["graph"].has_edge_types else [])]
    return [(f"{name} of layer {layer}", "dst") for layer in range(layers) for name in names]


def law(name: str, nodes: int | tuple[int, int], edges: int, types: int = 0) -> Any:
    return functools.partial(random_graph, name, nodes, edges, num_edge_types=types, seed=3)


def rows(*degrees: int, types: int = 0) -> Graph:
    """Rows of the given degrees; edge e comes from node e."""
    destination = torch.repeat_interleave(torch.arange(len(degrees)), torch.tensor(degrees).long())
    edges = torch.stack((torch.arange(destination.numel()), destination))
    kind = torch.arange(destination.numel()) % types if types else None
    return Graph.from_edge_index(edges, (max(destination.numel(), 1), len(degrees)), edge_type=kind)


def sample(name: str, graph: Any, size: str = "small", **options: Any) -> Sample:
    return Sample(name, functools.partial(make, graph, **options), size)


SAMPLES = (
    sample("plain", law("uniform", 12, 60), "tiny", k=3),
    sample("layers", law("power_law", 12, 90, 3), "tiny", k=[2, 7, 4], layers=3, epoch=5),
    sample("one_weight_for_layers", law("power_law", 12, 90), "tiny", k=[3, 4], seed=-(2**63)),
    sample("uniform", law("uniform", 12, 60, 2), k=4, shape="none", method="uniform"),
    sample("top", law("uniform", 12, 60), "tiny", k=4, shape="ties", method="top"),
    sample("pad", law("uniform", 12, 60, 2), "tiny", k=9, fill="pad"),
    sample("ties", law("uniform", 12, 90), k=5, shape="ties", seed=2**63 - 1),
    sample("steep", law("uniform", 12, 200), k=5, shape="steep"),
    sample("rare", law("uniform", 12, 200), k=5, shape="rare"),
    sample("more_than_all", law("power_law", 12, 60), k=70, epoch=2**32 - 1),
    sample("many_places", law("uniform", 5, 60), k=700),
    sample("bipartite", law("uniform", (20, 3), 50, 2), k=6),
    sample("zero_edges", law("uniform", 4, 0, 2), k=2),
    sample("no_nodes", lambda: rows(), k=2),
    sample("one_edge_rows", lambda: rows(1, 0, 1, 1), k=3),
    sample("rows_of_31_to_34", lambda: rows(31, 32, 33, 34), k=8),
    sample("row_of_k", lambda: rows(6, 5, 7), k=6),
    sample("rows_around_2k", lambda: rows(9, 10, 11, 15, 16, 17, 21, 22, 40), k=8, shape="steep"),
    sample("most_drawn", lambda: rows(127, 128, 150, 300), k=64),
    sample("more_than_drawn", lambda: rows(130, 200), k=65),
    sample("searches", lambda: rows(*[16, 17, 33, 255, 256, 257, 1_024, 1_025, 2_000] * 3), k=7),
    sample("hub", law("hub", 40, 9_000, 2), "broad", k=10),
    sample("hub_with_many_places", law("hub", 40, 30_000), "broad", k=3_000),
    sample("hub_top", law("hub", 40, 9_000), "broad", k=10, shape="ties", method="top"),
    sample("hub_with_ties", law("hub", 4, 30_000), "broad", k=20, shape="steep"),
    sample("window_rows", lambda: rows(1_984, 1_985, 2_047, 2_048, 2_049, 64, 5_000), "broad", k=9),
    sample("power_law_thousands", law("power_law", 3_000, 60_000, 3), "broad", k=[5, 10], layers=2),
    sample("low_degrees", law("uniform", 5_000, 40_000), "broad", k=10),
)  # fmt: skip


def drawn(backend: str, device: torch.device, **options: Any) -> tuple[Neighbors, ...]:
    call = make(law("power_law", 30, 900), **{"k": 6, **options}).cast(torch.float32, device)
    return ops.sample_neighbors(**call.tensors, **call.others, backend=backend)


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def spoiled(value: float) -> Any:
    def changed(right: Mapping[str, Any]) -> Tensor:
        weight = right["weight"].clone()
        weight[7] = value
        return weight

    return changed


BAD = (
    BadInput("graph_an_edge_index", change(graph=lambda a: a["graph"].edge_index()), TypeError,
             r"^graph must be a gtkern.Graph \(Graph.from_any makes one\), got Tensor"),
    BadInput("weight_no_tensor", change(weight=[1.0]), TypeError,
             r"^weight must be a tensor, got list"),
    BadInput("weight_integer", change(weight=lambda a: a["weight"].long()), TypeError,
             r"^weight must be float32, .* got torch.int64"),
    BadInput("weight_size", change(weight=torch.ones(59)), ValueError,
             r"^weight must have shape \[E\] or \[L, E\] with E = 60, got \[59\]"),
    BadInput("weight_rank", change(weight=torch.ones(1, 1, 60)), ValueError,
             r"^weight must have shape \[E\] or \[L, E\] with E = 60, got \[1, 1, 60\]"),
    BadInput("weight_without_layers", change(weight=torch.ones(0, 60)), ValueError,
             r"^weight must have shape \[E\] or \[L, E\] with E = 60, got \[0, 60\]"),
    BadInput("weight_negative", change(weight=spoiled(-0.5)), ValueError,
             r"^weight must be 0 \.\. 2\*\*100, got -0\.5"),
    BadInput("weight_nan", change(weight=spoiled(math.nan)), ValueError,
             r"^weight must be 0 \.\. 2\*\*100, got nan"),
    BadInput("weight_infinite", change(weight=spoiled(math.inf)), ValueError,
             r"^weight must be 0 \.\. 2\*\*100, got inf"),
    BadInput("weight_missing", change(weight=None), ValueError,
             r"^weight must be given with method='weighted', got None"),
    BadInput("weight_with_uniform", change(method="uniform"), ValueError,
             r"^weight must be None with method='uniform', got a tensor"),
    BadInput("weight_device", change(weight=torch.ones(60, device="meta")), ValueError,
             r"^weight must be on the device of graph \(cpu\), got meta"),
    BadInput("k_zero", change(k=0), ValueError, r"^k must be at least 1, got 0"),
    BadInput("k_negative", change(k=[3, -1]), ValueError, r"^k must be at least 1, got -1"),
    BadInput("k_enormous", change(k=10**400), ValueError,
             r"^k must be below 2\*\*31, got an integer of 1329 bits"),
    BadInput("k_a_float", change(k=2.0), TypeError,
             r"^k must be an integer or a list of them, got float"),
    BadInput("k_holds_a_string", change(k=["3"]), TypeError, r"^k must hold integers, got str"),
    BadInput("k_empty", change(k=[]), ValueError, r"^k must name at least 1 layer"),
    BadInput("k_for_other_layers", change(k=[2, 2], weight=torch.ones(3, 60)), ValueError,
             r"^k must have one number for each of the 3 layers of weight, got 2"),
    BadInput("seed_a_float", change(seed=0.5), TypeError, r"^seed must be an integer, got float"),
    BadInput("seed_too_large", change(seed=2**63), ValueError,
             r"^seed must fit in 64 signed bits, got 9223372036854775808"),
    BadInput("epoch_negative", change(epoch=-1), ValueError,
             r"^epoch must be 0 \.\. 2\*\*32 - 1, got -1"),
    BadInput("epoch_a_float", change(epoch=1.0), TypeError,
             r"^epoch must be an integer, got float"),
    BadInput("method_unknown", change(method="max"), ValueError,
             r"^method must be one of 'weighted', 'uniform', 'top', got 'max'"),
    BadInput("fill_unknown", change(fill="zero"), ValueError,
             r"^fill must be one of 'replacement', 'pad', got 'zero'"),
    BadInput("table_by_hand",
             change(weight=lambda a: ops.sampling_table(a["graph"], torch.rand(60))._replace(
                 prefix=torch.zeros(1, 3, dtype=torch.uint32))), ValueError,
             r"^weight must be what sampling_table made, got one with prefix of .*\[1, 3\]"),
    BadInput("table_of_other_sizes",
             change(weight=lambda a: ops.sampling_table(rows(2, 3), torch.rand(5))), ValueError,
             r"^weight must be a table of the graph \(12 nodes, 60 edges\), got one of 2 nodes, 5"),
    BadInput("table_of_another_graph",
             change(weight=lambda a: ops.sampling_table(rows(*[5] * 12), torch.rand(60))),
             ValueError, r"^weight must be a table of the graph, got one of another graph"),
    BadInput("table_device",
             change(weight=lambda a: ops.sampling_table(a["graph"], a["weight"]).to("meta")),
             ValueError, r"^weight must be on the device of graph \(cpu\), got meta"),
    BadInput("table_with_uniform",
             change(weight=lambda a: ops.sampling_table(a["graph"], a["weight"]), method="uniform"),
             ValueError, r"^weight must be None with method='uniform', got a table"),
    BadInput("backend_unknown", change(backend="numpy"), ValueError,
             r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
)  # fmt: skip

ROOM = Room(
    op=sample_flat,
    samples=SAMPLES,
    results=results,
    structure=graph_structure,
    edges=graph_edges,
    relabel=graph_relabel,
    join=graph_join,
    saved_bytes=lambda call: 0,
    bad=BAD,
)
