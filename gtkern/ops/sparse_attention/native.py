"""The cpu and cuda backends: csrc/sparse_attention, one schema for both; torch picks by device."""

from __future__ import annotations

from torch import Tensor

from gtkern import _native
from gtkern.graph import Adjacency
from gtkern.ops.sparse_attention.types import Forward, Gradients, Needs, Options, Terms


class Native:
    """The kernels of one library: backend "cpu" or "cuda"."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        csr: Adjacency,
        terms: Terms,
        options: Options,
        return_scores: bool,
    ) -> Forward:
        """See types.Forward."""
        return Forward(
            *_native.ops(self.backend).sparse_attention_fwd(
                q, k, v, *csr, *terms, *options, return_scores
            )
        )

    def backward(
        self,
        grad_out: Tensor,
        grad_edge_out: Tensor | None,
        grad_scores: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        edge_out: Tensor,
        lse: Tensor,
        csr: Adjacency,
        csc: Adjacency,
        terms: Terms,
        options: Options,
        needs: Needs,
        partial: bool = False,
    ) -> Gradients:
        """See types.Gradients.

        Args:
            partial: rows attend to more than their edges, and out, edge_out and lse are of all.
        """
        mask = sum(1 << bit for bit, needed in enumerate(needs) if needed)
        return Gradients(
            *_native.ops(self.backend).sparse_attention_bwd(
                grad_out,
                grad_edge_out,
                grad_scores,
                q,
                k,
                v,
                out,
                edge_out,
                lse,
                *csr,
                *csc,
                *terms,
                *options,
                mask,
                partial,
            )
        )
