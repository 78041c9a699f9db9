"""How a room describes itself to the contract, and the means to run and compare its calls.

A `Room` holds an op, samples to try it on (data), and how its structure (the graph, the neighbours)
is relabelled and joined; contract.py has the claims.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from gtkern import _backends
from gtkern.testing import assert_within_budget

GRADIENT_UNIT = 0.5
"""Gradients cancel (those of a softmax row's scores sum to zero): below this size, where
inputs have unit size, their errors are not magnified."""

HALF = (torch.bfloat16, torch.float16)


class Call(NamedTuple):
    """One call of an op.

    Attributes:
        tensors: the floating-point arguments by name, float64 on the CPU.
        axes: what the first axis of each counts: "dst", "src", "edge" or "type".
        others: every other argument by name: structure and options.
    """

    tensors: dict[str, Tensor]
    axes: dict[str, str]
    others: dict[str, Any]

    def cast(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Call:
        """The same call on tensors of `dtype`, with its structure on `device`."""
        tensors = {name: value.to(device, dtype) for name, value in self.tensors.items()}
        others = {
            name: value.to(device) if hasattr(value, "to") else value
            for name, value in self.others.items()
        }
        return Call(tensors, self.axes, others)


@dataclass(frozen=True)
class Sample:
    """A call to try.

    Attributes:
        name: in the test's id.
        build: makes the call, the same every time.
        size: "tiny" (also for gradcheck, opcheck, compile), "small" (every backend), "long" (of an
            interpreter or emulator only results and gradients) or "broad" (not for those).
    """

    name: str
    build: Callable[[], Call]
    size: str = "small"


class BadInput(NamedTuple):
    """A wrong call and the error it promises.

    Attributes:
        name: in the test's id.
        change: makes the wrong arguments from the right ones.
        error: its class.
        match: regular expression of its message.
    """

    name: str
    change: Callable[[Mapping[str, Any]], dict[str, Any]]
    error: type[Exception]
    match: str


@dataclass(frozen=True)
class Room:
    """What the contract must know of an op.

    Attributes:
        op: the public function; takes every argument by name, and backend=.
        samples: the calls to try; the first is the one that bad inputs are made from.
        results: names and axes (see Call.axes) of what the op returns for a call.
        structure: the tensors of the structure; part of the inputs, not of what backward saves.
        edges: (source, destination) int64 of everything that is gathered.
        relabel: the structure with source j renamed source_to[j], and destinations likewise.
        join: one structure out of several, side by side, as a batch holds them.
        backends: those the op has.
        bad: the wrong calls and their errors.
        saved_bytes: what backward may keep beyond inputs and results, for a call.
        waits: whether a call must wait for the device, as its README says.
        orders: draws new numbers for sources and destinations that the structure can take, by axis;
            default: any.
    """

    op: Callable[..., Any]
    samples: tuple[Sample, ...]
    results: Callable[[Call], list[tuple[str, str]]]
    structure: Callable[[Mapping[str, Any]], list[Tensor]]
    edges: Callable[[Mapping[str, Any]], tuple[Tensor, Tensor]]
    relabel: Callable[[Mapping[str, Any], Tensor, Tensor], dict[str, Any]]
    join: Callable[[list[Mapping[str, Any]]], dict[str, Any]]
    saved_bytes: Callable[[Call], int]
    waits: Callable[[Call], bool] = lambda call: False
    orders: Callable[[Call, torch.Generator], dict[str, Tensor]] | None = None
    backends: tuple[str, ...] = _backends.BACKENDS
    bad: tuple[BadInput, ...] = ()
    oracles: dict[Any, dict[str, Tensor]] = field(default_factory=dict)


def pairs(room: Room) -> list[tuple[str, torch.device]]:
    """The (backend, device) pairs worth trying here; some may turn out unable to run."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    found = [(backend, cpu) for backend in room.backends if backend in ("reference", "cpu")]
    for backend in room.backends:
        gpu_code = backend in ("triton", "cuda")
        on_host = gpu_code and _backends.unavailable_reason(backend, cpu) is None
        if gpu_code and (on_host or not torch.cuda.is_available()):
            found.append((backend, cpu))
        if backend != "cpu" and torch.cuda.is_available():
            found.append((backend, cuda))
    return found


def everywhere(room: Room, *, only_fast: bool = False) -> pytest.MarkDecorator:
    """Run a test with each of a room's pairs as `backend` and `device`.

    Args:
        only_fast: leave out what an interpreter or emulator runs, as for thousands of rows.
    """
    chosen = [pair for pair in pairs(room) if not only_fast or fast(*pair)]
    ids = [f"{backend}-{device}" for backend, device in chosen]
    return pytest.mark.parametrize(("backend", "device"), chosen, ids=ids)


def fast(backend: str, device: torch.device) -> bool:
    """False where an interpreter or emulator runs the kernels."""
    return backend in ("reference", "cpu") or device.type == "cuda"


def dtypes(backend: str, sample: Sample, device: torch.device) -> list[torch.dtype]:
    """The dtypes in which a backend tries a sample."""
    if not fast(backend, device):
        return [torch.float32, *(HALF if sample.size == "tiny" else ())]
    wide = [torch.float64] if backend == "cpu" else []
    return [*wide, torch.float32, *HALF]


def cotangent(result: Tensor, seed: int) -> Tensor:
    """A fixed random gradient for a result, exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    return values.to(torch.bfloat16).to(result.device, result.dtype)


def run(
    room: Room,
    call: Call,
    backend: str,
    *,
    needs: tuple[str, ...] | None = None,
    op: Callable[..., Any] | None = None,
) -> dict[str, Tensor]:
    """Every result by name, and every gradient as "grad of <argument>".

    Args:
        needs: the arguments whose gradients are wanted; default: all.
        op: called in place of the room's.
    """
    needs = tuple(call.tensors) if needs is None else needs
    leaves = {
        name: value.detach().requires_grad_(name in needs) for name, value in call.tensors.items()
    }
    results = (op or room.op)(**leaves, **call.others, backend=backend)
    results = results if isinstance(results, tuple) else (results,)
    named = dict(zip([name for name, _ in room.results(call)], results, strict=True))
    found = {name: value.detach() for name, value in named.items()}
    wanted = [leaves[name] for name in needs]
    roots = [value for value in results if value.requires_grad]
    if wanted and roots:
        cotangents = [cotangent(value, at) for at, value in enumerate(roots)]
        gradients = torch.autograd.grad(roots, wanted, cotangents, allow_unused=True)
        for name, leaf, gradient in zip(needs, wanted, gradients, strict=True):
            found[f"grad of {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return found


def oracle(room: Room, call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    """What float64 maths makes of the call's values, once they are rounded to `dtype`."""
    return run(room, call.cast(dtype).cast(torch.float64), "reference")


def sample_oracle(room: Room, sample: Sample, dtype: torch.dtype) -> dict[str, Tensor]:
    """`oracle` of a sample, computed once for all backends."""
    key = (sample.name, dtype)
    if key not in room.oracles:
        room.oracles[key] = oracle(room, sample.build(), dtype)
    return room.oracles[key]


def assert_all_within_budget(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    growth: float = 1.0,
) -> None:
    """Each named tensor within the budget of `dtype`, and in the dtype promised for it.

    Args:
        growth: how many times options make larger what cancels in gradients of unit size.
    """
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        unit = GRADIENT_UNIT * growth if name.startswith("grad") else 0.0
        assert_within_budget(value, expected[name], name=name, dtype=dtype, unit=unit)


def assert_bit_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Each named tensor equal in every bit that counts (NaN equals NaN)."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        other = expected[name]
        assert value.dtype == other.dtype and value.shape == other.shape, name
        differ = (value != other) & ~(value.isnan() & other.isnan())
        assert not differ.any(), f"{name}: {int(differ.sum())} of {value.numel()} values differ"


def lazy_zeros(rows: int, heads: int, width: int, dtype: torch.dtype) -> Tensor:
    """Zeros whose pages take no memory until they are written."""
    space = mmap.mmap(-1, rows * heads * width * dtype.itemsize)
    return torch.frombuffer(space, dtype=dtype).view(rows, heads, width)


def graph_edges(others: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """`Room.edges` for ops that take a graph."""
    source, destination = others["graph"].edge_index()
    return source, destination


def graph_structure(others: Mapping[str, Any]) -> list[Tensor]:
    """`Room.structure` for ops that take a graph."""
    return [*others["graph"].csr, *others["graph"].csc]


def graph_relabel(
    others: Mapping[str, Any], source_to: Tensor, destination_to: Tensor
) -> dict[str, Any]:
    """`Room.relabel` for ops that take a graph; edges keep their numbers."""
    graph = others["graph"]
    source, destination = graph.edge_index()
    edges = torch.stack((source_to[source], destination_to[destination]))
    sizes = (graph.num_src_nodes, graph.num_dst_nodes)
    relabelled = type(graph).from_edge_index(edges, sizes, edge_type=graph.edge_type())
    return {**others, "graph": relabelled}


def graph_join(calls: list[Mapping[str, Any]]) -> dict[str, Any]:
    """`Room.join` for ops that take a graph; options are the first one's."""
    graphs = [others["graph"] for others in calls]
    sources, destinations, edges, types = 0, 0, [], []
    for graph in graphs:
        edges.append(graph.edge_index() + torch.tensor([[sources], [destinations]]))
        types.append(graph.edge_type())
        sources += graph.num_src_nodes
        destinations += graph.num_dst_nodes
    typed = None if types[0] is None else torch.cat(types)
    joined = type(graphs[0]).from_edge_index(
        torch.cat(edges, dim=1), (sources, destinations), edge_type=typed
    )
    return {**calls[0], "graph": joined}
