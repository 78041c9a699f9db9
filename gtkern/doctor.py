"""What works here: versions, devices, backends, and a quick test of every room."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

import gtkern
from gtkern import _backends, _native, ops
from gtkern.block_sparse import BlockSparseMatrix
from gtkern.graph import Graph
from gtkern.ragged import PairIndex, Ragged

__all__ = ["Check", "self_test", "show"]

_PACKAGES = ("torch", "triton", "lightning", "torch_geometric", "numpy")
_TOLERANCE = 1e-4


class Check(NamedTuple):
    """A room's test on one backend: the largest error against the reference, or why it was not run.

    Attributes:
        room, backend: names.
        reason: why the backend cannot run; None when it did.
        error: largest relative difference of outputs and gradients.
        milliseconds: of the call.
        message: of the exception it raised; empty when it raised none.
    """

    room: str
    backend: str
    reason: str | None
    error: float
    milliseconds: float
    message: str = ""

    @property
    def failed(self) -> bool:
        """True when it ran and was wrong."""
        return self.reason is None and not self.error < _TOLERANCE


def show(console: Console) -> bool:
    """Print everything; gives True when no test failed."""
    versions = Table(title="versions", show_header=False)
    versions.add_row("gtkern", gtkern.__version__)
    versions.add_row("python", platform.python_version())
    for package in _PACKAGES:
        try:
            versions.add_row(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            versions.add_row(package, "not installed")
    console.print(versions)

    devices = Table(title="devices", show_header=False)
    devices.add_row("cpu", f"{_cpu_name()}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            devices.add_row(f"cuda:{number}", torch.cuda.get_device_name(number))
    else:
        devices.add_row("cuda", _native.missing_reason("cuda") or "no device")
    console.print(devices)

    facts = _native.build_facts()
    if facts:
        build = Table(title="native libraries", show_header=False)
        for name in ("compiler", "build_type", "torch", "cuda", "cuda_architectures"):
            if facts.get(name):
                build.add_row(name.replace("_", " "), facts[name])
        build.add_row("machine", "any x86-64-v3" if facts.get("portable") == "ON" else "this one")
        stale = _native.stale_reason()
        if stale:
            build.add_row("sources", f"[yellow]{stale}")
        console.print(build)

    checks = self_test(_device())
    rooms = Table(title=f"rooms, tested on {_device()}")
    for heading in ("room", "backend", "state"):
        rooms.add_column(heading)
    for heading in ("largest error", "ms"):
        rooms.add_column(heading, justify="right")
    for check in checks:
        if check.reason is not None:
            state, figures = f"[yellow]not here: {check.reason}", ("", "")
        else:
            state = f"[red]WRONG {escape(check.message)}" if check.failed else "[green]works"
            figures = (f"{check.error:.1e}", f"{check.milliseconds:.2f}")
        rooms.add_row(check.room, check.backend, state, *figures)
    console.print(rooms)
    return not any(check.failed for check in checks)


def self_test(device: torch.device) -> list[Check]:
    """Run every room on every backend with a small random input."""
    generator = torch.Generator().manual_seed(0)
    nodes, edges, heads, width = 60, 400, 2, 8
    edge_index = torch.randint(nodes, (2, edges), generator=generator)
    edge_type = torch.randint(3, (edges,), generator=generator, dtype=torch.uint8)
    graph = Graph.from_edge_index(edge_index, nodes, edge_type=edge_type).to(device)
    q, k, v = torch.randn(3, nodes, heads, width, generator=generator).to(device).unbind(0)
    scale = torch.randn(3, heads, width, generator=generator).to(device)
    bias = torch.randn(3, heads, generator=generator).to(device)
    weight = torch.rand(edges, generator=generator)
    sampled = ops.sample_neighbors(graph.to("cpu"), weight, 5, seed=0, backend="reference")[0]
    index = sampled.index.to(device)
    kind = None if sampled.type is None else sampled.type.to(device)

    def sparse(backend: str) -> list[Tensor]:
        return _with_gradients(
            lambda q, k, v: ops.sparse_attention(
                q, k, v, graph, key_scale=scale, bias=bias, clamp=8.0, backend=backend
            ),
            q,
            k,
            v,
        )

    def additive(backend: str) -> list[Tensor]:
        return _with_gradients(
            lambda q, k, attention: ops.additive_attention(
                q, k, None, graph, attention, backend=backend
            ),
            q,
            k,
            scale[0],
        )

    def fixed(backend: str) -> list[Tensor]:
        return _with_gradients(
            lambda q, k, v: ops.sampled_attention(
                q, k, v, index, key_scale=scale, bias=bias, edge_type=kind, backend=backend
            ),
            q,
            k,
            v,
        )

    spans = Ragged.from_ptr(torch.tensor([0, 17, 17, 40, nodes])).to(device)
    entry = torch.randint(3, (spans.num_pairs,), generator=generator, dtype=torch.uint8)
    pairs = PairIndex.from_tensor(entry.to(device), spans, 3)

    def ragged(backend: str) -> list[Tensor]:
        return _with_gradients(
            lambda q, k, v, table: ops.ragged_attention(
                q, k, v, spans, bias=[(pairs, table)], prefix_k=scale, prefix_v=scale,
                backend=backend,
            ),
            q,
            k,
            v,
            bias,
        )  # fmt: skip

    def sampling(backend: str) -> list[Tensor]:
        drawn = ops.sample_neighbors(graph, weight.to(device), 5, seed=0, backend=backend)
        return [drawn[0].index.double()]

    def dropping(backend: str) -> list[Tensor]:
        def kept(score: Tensor, x: Tensor) -> Tensor:
            chosen = ops.select_tokens(score, spans, ratio=0.5, backend=backend)
            rows = ops.gather_tokens(x, chosen, chosen.gate, backend=backend)
            return ops.scatter_tokens(rows, chosen, backend=backend)

        return _with_gradients(kept, q[:, 0, 0], k)

    rows = torch.randn(nodes, 40, generator=generator).to(device)
    dense = torch.randn(24, 40, generator=generator).to(device)
    blocks = BlockSparseMatrix.from_dense(dense, 16, keep=0.5)

    def linear(backend: str) -> list[Tensor]:
        def layer(x: Tensor, values: Tensor) -> Tensor:
            sparse = blocks.with_values(values)
            return ops.block_sparse_linear(x, sparse, None, "gelu", backend=backend)

        return _with_gradients(layer, rows, blocks.values)

    both_ways = Graph.from_edge_index(torch.cat((edge_index, edge_index.flip(0)), 1), nodes)
    both_ways = both_ways.to(device)

    def propagation(backend: str) -> list[Tensor]:
        return _with_gradients(lambda x: ops.propagate(both_ways, x, 0.1, backend=backend), q[:, 0])

    rooms: dict[str, Callable[[str], list[Tensor]]] = {
        "sparse_attention": sparse,
        "additive_attention": additive,
        "sampled_attention": fixed,
        "ragged_attention": ragged,
        "neighbor_sampling": sampling,
        "token_dropping": dropping,
        "block_sparse_linear": linear,
        "propagation": propagation,
    }
    checks = []
    for room, run in rooms.items():
        expected = run("reference")
        for backend in _backends.BACKENDS:
            try:
                run(backend)
            except NotImplementedError as error:
                reason = str(error).partition(": ")[2].partition(";")[0] or str(error)
                checks.append(Check(room, backend, reason, 0.0, 0.0))
                continue
            except Exception as error:
                # whatever is wrong with a backend, the others are still looked at
                checks.append(Check(room, backend, None, math.inf, math.nan, str(error)))
                continue
            began = time.perf_counter()
            got = run(backend)
            milliseconds = 1e3 * (time.perf_counter() - began)
            largest = max(_difference(a, b) for a, b in zip(got, expected, strict=True))
            checks.append(Check(room, backend, None, largest, milliseconds))
    return checks


def _with_gradients(attend: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def _difference(got: Tensor, expected: Tensor) -> float:
    size = float(expected.abs().max())
    return float((got - expected).abs().max()) / max(size, 1e-12)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
