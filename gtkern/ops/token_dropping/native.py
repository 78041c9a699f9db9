"""The cpu and cuda backends: csrc/token_dropping, one schema for both; torch picks by device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gtkern import _native
from gtkern.graph import Adjacency


class Native:
    """The kernels of one library: backend "cpu" or "cuda". Functions as in reference.py."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.ops: Any = _native.ops(backend)

    def count(
        self, score: Tensor, ptr: Tensor, k: Tensor | None, ratio: float, forced: Tensor | None
    ) -> tuple[Tensor, int]:
        """counts.kept_ptr on the CPU, for k that are not negative; and the first NaN, or -1."""
        kept_ptr, nan_row = self.ops.token_count(score, ptr, k, ratio, forced)
        return kept_ptr, nan_row

    def select(
        self,
        score: Tensor,
        ptr: Tensor,
        kept_ptr: Tensor,
        num_kept: int,
        always_keep: Tensor | None,
        seed: int | None,
    ) -> tuple[Tensor, Tensor]:
        """See reference.select."""
        index, position = self.ops.token_select(
            score, ptr, kept_ptr, num_kept, always_keep, seed is not None, seed or 0
        )
        return index, position

    def gate_backward(
        self,
        grad_gate: Tensor,
        score: Tensor,
        ptr: Tensor,
        position: Tensor,
        always_keep: Tensor | None,
        temperature: float,
        seed: int | None,
    ) -> Tensor:
        """The gradient of the scores [N], from that of the gate [M]."""
        gradient: Tensor = self.ops.token_gate_bwd(
            grad_gate, score, ptr, position, always_keep, temperature, seed is not None, seed or 0
        )
        return gradient

    def gather(self, x: Tensor, gate: Tensor | None, index: Tensor, position: Tensor) -> Tensor:
        """See reference.gather."""
        out: Tensor = self.ops.token_gather(x, gate, index)
        return out

    def gather_backward(
        self,
        grad_out: Tensor,
        x: Tensor | None,
        gate: Tensor | None,
        index: Tensor,
        position: Tensor,
        needs_x: bool,
        needs_gate: bool,
    ) -> tuple[Tensor, Tensor]:
        """The gradients of x [N, C] and gate [M]; without elements where not needed."""
        grad_x, grad_gate = self.ops.token_gather_bwd(
            grad_out, x, gate, index, position, needs_x, needs_gate
        )
        return grad_x, grad_gate

    def scatter(
        self, y: Tensor | None, fill: Tensor | None, index: Tensor, position: Tensor
    ) -> Tensor:
        """See reference.scatter; without y, the kept rows are zeros."""
        out: Tensor = self.ops.token_scatter(y, fill, position)
        return out

    def drop_edges(
        self, source: Tensor, destination: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See reference.drop_edges."""
        if self.backend == "cuda":
            kept = self.ops.token_kept_edges(source, destination, position)
            after = kept.cumsum(0, dtype=torch.int64)
            count = int(after[-1]) if after.numel() else 0
            edges, edge = self.ops.token_write_edges(
                source, destination, position, kept, after, count
            )
            return edges, edge
        edges, edge = self.ops.token_drop_edges(source, destination, position)
        return edges, edge

    def drop_rows(
        self, csr: Adjacency, index: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See reference.drop_rows."""
        if self.backend == "cuda":
            degree = self.ops.token_degrees(csr.ptr, csr.index, index, position)
            ptr = torch.cat((degree.new_zeros(1), degree.cumsum(0)))
            source, edge, types = self.ops.token_write_rows(
                csr.ptr, csr.index, csr.edge_id, csr.edge_type, index, position, ptr, int(ptr[-1])
            )
            return ptr, source, edge, types
        ptr, source, edge, types = self.ops.token_drop_rows(
            csr.ptr, csr.index, csr.edge_id, csr.edge_type, index, position
        )
        return ptr, source, edge, types

    def gather_pairs(
        self,
        entry: Tensor,
        ptr: Tensor,
        pair_ptr: Tensor,
        index: Tensor,
        kept_ptr: Tensor,
        kept_pair_ptr: Tensor,
        num_pairs: int,
    ) -> Tensor:
        """See reference.gather_pairs."""
        out: Tensor = self.ops.token_gather_pairs(
            entry, ptr, pair_ptr, index, kept_ptr, kept_pair_ptr, num_pairs
        )
        return out
