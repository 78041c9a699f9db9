"""The Triton kernels compile for real GPUs, without one.

Their launchers run on a make-believe driver that compiles every launch and starts none.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gtkern
from gtkern import BlockSparseMatrix, Graph, Ragged, _backends
from gtkern.ops._attention import Needs, Options, Terms

ARCHITECTURES = (80, 90)
SPILLED_BYTES = 64
"""What a thread may spill: a few words outside the loops cost nothing that can be measured."""
ELSEWHERE = {80: {"merge_forward_kernel"}, 90: {"draw_kernel"}}
"""Kernels that are compiled for the other architecture alone."""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_spilling(architecture: int, tmp_path: Path) -> None:
    reason = _backends.unavailable_reason("triton", torch.device("cuda"))
    if reason is not None:
        pytest.skip(reason)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(gtkern.__file__).parents[1])
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, __file__, str(architecture)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    compiled = {line.split()[0] for line in done.stdout.splitlines()}
    assert (
        compiled
        == {
            "additive_delta_kernel",
            "additive_destination_kernel",
            "additive_forward_kernel",
            "additive_source_kernel",
            "degree_kernel",
            "delta_kernel",
            "destination_kernel",
            "dot_kernel",
            "draw_kernel",
            "forward_kernel",
            "gate_kernel",
            "gather_kernel",
            "heavy_sum_kernel",
            "kept_edges_kernel",
            "key_kernel",
            "keys_kernel",
            "merge_forward_kernel",
            "merge_sum_kernel",
            "normalize_kernel",
            "pairs_kernel",
            "product_kernel",
            "pull_back_kernel",
            "query_kernel",
            "race_kernel",
            "scatter_kernel",
            "score_delta_kernel",
            "select_kernel",
            "source_kernel",
            "sweep_kernel",
            "table_kernel",
            "weight_kernel",
            "write_edges_kernel",
            "write_row_kernel",
        }
        - ELSEWHERE[architecture]
    )


class _Driver:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(architecture: int) -> None:
    """Compile what some typical calls launch; print a line for each kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    triton.runtime.driver.set_active(_Driver(GPUTarget("cuda", architecture, 32)))
    run = JITFunction.run
    seen = set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            spilled, report = _resources(kernel.asm["cubin"])
            print(self.fn.__name__, report)
            if spilled > SPILLED_BYTES:
                raise RuntimeError(f"{self.fn.__name__} spills {spilled} bytes: {report}")
        return kernel

    JITFunction.run = compile_only
    # what an architecture decides is how products of tiles run; other kernels take one of the two
    if architecture == ARCHITECTURES[0]:
        sample_neighbors(10, types=3)
        sample_neighbors(64, types=0, uniform=True)
        attend_additively(torch.bfloat16, heads=4, width=28, attr=True, dropout=0.2)
        drop_tokens(torch.float32)
        propagate(torch.float32)
        launch_attention(
            torch.float32,
            heads=2,
            width=28,
            types=3,
            edge_width=0,
            degree=5,
            clamp=8.0,
            scores=True,
        )
        launch_block_sparse(torch.bfloat16, (128, 16))
        launch_block_sparse(torch.float32, (64, 64))
        launch_ragged(torch.bfloat16, 64, [500, 20, 300])
        launch_attention(torch.float32, heads=2, width=8, types=0, edge_width=0)
        launch_attention(torch.bfloat16, heads=1, width=128, types=0, edge_width=0, degree=10)
    else:
        sample_neighbors(30, types=0, method="top")
        attend_additively(torch.float32, heads=8, width=256, attr=False)
        drop_tokens(torch.bfloat16)
        propagate(torch.bfloat16)
        launch_attention(
            torch.bfloat16,
            heads=4,
            width=28,
            types=3,
            edge_width=0,
            hub=2000,
            clamp=5.0,
            scores=True,
        )
        launch_block_sparse(torch.bfloat16, (64, 64))
        launch_block_sparse(torch.float32, (128, 24), tf32=True)
        launch_ragged(torch.float32, 10, [26, 20, 31], dropout=0.1)
        launch_attention(
            torch.float16, heads=8, width=64, types=0, edge_width=16, dropout=0.1, eps=1e-6
        )
        launch_attention(
            torch.float16, heads=8, width=32, types=0, edge_width=16, degree=15, dropout=0.1
        )


def _resources(cubin: bytes) -> tuple[int, str]:
    """Bytes that a thread spills, and the tool's line."""
    from triton import knobs

    path = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    path.write_bytes(cubin)
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", output)
    assert found is not None, output
    return int(found[1]) + int(found[2]), found[0]


def launch_attention(
    dtype: torch.dtype,
    heads: int,
    width: int,
    types: int,
    edge_width: int,
    hub: int = 0,
    degree: int = 0,
    clamp: float = math.inf,
    dropout: float = 0.0,
    eps: float = 0.0,
    scores: bool = False,
) -> None:
    """Forward and backward of one call.

    Args:
        hub: gives node 0 that many edges each way.
        degree: rows of that many places, as sampled_attention has them; 0: those of a graph.
    """
    from gtkern.ops.sampled_attention import triton as sampled
    from gtkern.ops.sparse_attention import triton as sparse

    nodes = 256 if degree else 64
    if degree:
        lead: tuple[int, ...] = (nodes, degree)
        neighbors = torch.randint(-1, nodes, lead, dtype=torch.int32)
        kind = torch.randint(max(types, 1), lead if types else (0,), dtype=torch.uint8)
        backend: Any = sampled
        forward = backward = (neighbors, kind)
    else:
        lead = (256 + 2 * hub,)
        ends = torch.randint(nodes, (2, *lead))
        ends[1, :hub] = 0
        ends[0, hub : 2 * hub] = 0
        kinds = torch.randint(types, lead) if types else None
        graph = Graph.from_edge_index(ends, nodes, edge_type=kinds)
        backend = sparse
        forward, backward = (graph.csr,), (graph.csr, graph.csc)

    def empty(*shape: int, of: torch.dtype = dtype, needed: Any = True) -> Tensor | None:
        return torch.empty(shape, dtype=of) if needed else None

    q, k, v = (torch.empty(nodes, heads, width, dtype=dtype) for _ in range(3))
    terms = Terms(
        key_table=empty(types, heads, width, of=torch.float32, needed=types),
        bias_table=empty(types, heads, of=torch.float32, needed=types),
        key_edge=empty(*lead, heads, width, of=torch.float32, needed=edge_width),
        bias_edge=empty(*lead, heads, of=torch.float32, needed=edge_width),
        edge_query=empty(nodes, heads, edge_width, needed=edge_width),
        edge_attr=empty(*lead, edge_width, needed=edge_width),
    )
    options = Options(width**-0.5, clamp, 1.0, dropout, eps, 2**40)
    result = backend.forward(q, k, v, *forward, terms, options, scores)
    backend.backward(
        result.out,
        result.edge_out if edge_width else None,
        result.scores if scores else None,
        q,
        k,
        v,
        result.out,
        result.edge_out,
        result.lse,
        *backward,
        terms,
        options,
        Needs(True, True, True, *(term is not None for term in terms)),
    )


def attend_additively(
    dtype: torch.dtype, heads: int, width: int, attr: bool, dropout: float = 0.0
) -> None:
    """Forward and backward of one call; with edge_attr, also a v of its own and scores."""
    from gtkern.ops.additive_attention import triton as backend
    from gtkern.ops.additive_attention.types import Inputs, Needs, Options

    nodes, edges = 64, 2000
    graph = Graph.from_edge_index(torch.randint(nodes, (2, edges)), nodes)
    q, k, v = (torch.empty(nodes, heads, width, dtype=dtype) for _ in range(3))
    vector, rows = (torch.empty(*lead, heads, width, dtype=dtype) for lead in ((), (edges,)))
    inputs = Inputs(q, k, v if attr else None, vector, rows if attr else None)
    options = Options(0.2, dropout, 2**40)
    out, lse, scores = backend.forward(inputs, graph.csr, options, attr)
    needs = Needs(True, True, attr, True, attr)
    backend.backward(
        out, scores if attr else None, inputs, out, lse, graph.csr, graph.csc, options, needs
    )


def launch_ragged(
    dtype: torch.dtype, width: int, nodes: list[int], heads: int = 8, dropout: float = 0.0
) -> None:
    """Forward and backward of calls with two tables and a prefix, one or several sets of it."""
    from gtkern.ops.ragged_attention import call
    from gtkern.ops.ragged_attention import triton as backend

    ragged = Ragged.from_ptr(torch.tensor([0, *itertools.accumulate(nodes)]))
    batch = call.Batch(ragged.ptr, ragged.pair_ptr, ragged.max_nodes)
    q, k, v = (torch.empty(ragged.num_nodes, heads, width, dtype=dtype) for _ in range(3))
    indices = [torch.empty(ragged.num_pairs, dtype=kind) for kind in (torch.uint8, torch.int16)]
    bias = call.Bias(indices, torch.empty(60, heads), [0, 20])
    options = call.Options(width**-0.5, dropout, 2**40)
    needs = call.Needs(*[True] * 6)
    row_set = torch.empty(ragged.num_nodes, dtype=torch.int64)
    for sets, seen in (((), None), ((3,), row_set)):
        slots = [torch.empty(*sets, 4, heads, width, dtype=dtype) for _ in range(2)]
        prefix = call.Prefix(*slots, seen)
        out, lse = backend.forward(q, k, v, batch, bias, prefix, options)
        backend.backward(out, q, k, v, out, lse, batch, bias, prefix, options, needs)


def launch_block_sparse(dtype: torch.dtype, block: tuple[int, int], tf32: bool = False) -> None:
    """Forward and backward of one call of block_sparse_linear."""
    from gtkern.ops.block_sparse_linear import call
    from gtkern.ops.block_sparse_linear import triton as backend

    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    matrix = BlockSparseMatrix.from_dense(torch.ones(256, 384, dtype=dtype), block, keep=0.5)
    weight = call.Weight(matrix.values, matrix.index, 256)
    x, bias = torch.empty(2048, 384, dtype=dtype), torch.empty(256, dtype=dtype)
    out, kept = backend.forward(x, weight, bias, "gelu", True)
    backend.backward(out, x, weight, kept, "gelu", call.Needs(True, True, True))


def sample_neighbors(count: int, types: int, uniform: bool = False, method: str = "draw") -> None:
    """One call of the sampler's launcher."""
    from gtkern.ops.neighbor_sampling import triton as backend

    edges = torch.randint(64, (2, 512))
    kinds = torch.randint(types, (512,)) if types else None
    graph = Graph.from_edge_index(edges, 64, edge_type=kinds)
    weight = None if uniform else torch.rand(1, 512)
    backend.forward(graph.csr, weight, None, [count], 2**40, 3, method, False)


def drop_tokens(dtype: torch.dtype) -> None:
    """Every launch of token dropping; kernels of edges directly, for they need real counts."""
    from gtkern.ops.token_dropping import triton as backend
    from gtkern.ops.token_dropping import triton_kernels as kernels

    ragged, kept = (Ragged.from_ptr(torch.arange(5) * size) for size in (40, 20))
    nodes, count, width = ragged.num_nodes, kept.num_nodes, 64
    score, gate = torch.zeros(nodes, dtype=dtype), torch.ones(count, dtype=dtype)
    always = torch.zeros(nodes, dtype=torch.bool)
    index, position = torch.arange(count), torch.zeros(nodes, dtype=torch.int32)
    backend.select(score, ragged.ptr, kept.ptr, count, always, 2**40)
    backend.gate_backward(gate, score, ragged.ptr, position, always, 0.5, 2**40)
    x, rows = torch.zeros(nodes, width, dtype=dtype), torch.zeros(count, width, dtype=dtype)
    backend.gather(x, gate, index, position)
    backend.gather_backward(rows, x, gate, index, position, True, True)
    backend.scatter(rows, x, index, position)
    entry = torch.zeros(ragged.num_pairs, dtype=torch.uint8)
    backend.gather_pairs(
        entry, ragged.ptr, ragged.pair_ptr, index, kept.ptr, kept.pair_ptr, kept.num_pairs
    )
    ends, number = torch.zeros(2, 512, dtype=torch.int64), torch.zeros(512, dtype=torch.int64)
    flags, kinds = torch.zeros(512, dtype=torch.int8), torch.zeros(512, dtype=torch.uint8)
    kernels.kept_edges_kernel[1,](*ends, position, flags, 512, BLOCK=1024)
    kernels.write_edges_kernel[1,](*ends, position, flags, number, *ends, number, 512, BLOCK=1024)
    col = torch.zeros(512, dtype=torch.int32)
    structure = (index, position, number)
    kernels.degree_kernel[count,](ragged.ptr, col, *structure, BLOCK=128)
    kernels.write_row_kernel[count,](
        ragged.ptr, col, number, kinds, *structure, col, number, kinds, BLOCK=128
    )


def propagate(dtype: torch.dtype) -> None:
    """Counted sweeps of propagate, with heavy rows and without, and launches of tested ones."""
    from gtkern.ops.propagation import iteration
    from gtkern.ops.propagation import triton as backend
    from gtkern.ops.propagation.call import Operator, Options

    nodes = 64
    graph = Graph.from_edge_index(torch.zeros(2, 3000, dtype=torch.int64), nodes)
    rows = (graph.csr.ptr, graph.csr.index)
    node, edge = torch.ones(nodes), torch.ones(3000)
    few = graph.csr.heavy[:0]
    plain = Operator(*rows, few, None, node, node)
    weighted = Operator(*rows, graph.csr.heavy, edge, None, None)
    for operator, channels in ((plain, 40), (weighted, 128)):
        x = torch.zeros(nodes, channels, dtype=dtype)
        backend.solve(x, None, operator, Options(0.1, 0.0, 2, True))
        now, other = torch.zeros(2, nodes, channels)
        item = torch.zeros(nodes, dtype=torch.int32) if operator is weighted else None
        unit = torch.ones(channels)
        backend.launch(iteration.Sweep(x, 0, now, other, other, operator, item, 0.1, 1.0, unit))


if __name__ == "__main__":
    compile_all(int(sys.argv[1]))
