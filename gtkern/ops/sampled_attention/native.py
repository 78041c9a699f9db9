"""The cpu and cuda backends: csrc/sampled_attention, one schema for both; torch picks by device."""

from __future__ import annotations

from torch import Tensor

from gtkern import _native
from gtkern.ops._attention import Forward, Gradients, Needs, Options, Terms
from gtkern.ops.sampled_attention.places import group_by_source


class Native:
    """The kernels of one library: backend "cpu" or "cuda"."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        neighbors: Tensor,
        edge_type: Tensor,
        terms: Terms,
        options: Options,
        return_scores: bool,
    ) -> Forward:
        """See Forward."""
        return Forward(
            *_native.ops(self.backend).sampled_attention_fwd(
                q, k, v, neighbors, edge_type, *terms, *options, return_scores
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
        neighbors: Tensor,
        edge_type: Tensor,
        terms: Terms,
        options: Options,
        needs: Needs,
    ) -> Gradients:
        """See Gradients."""
        # the CPU's kernels group the places themselves
        grouped = self.backend == "cuda" and (needs.k or needs.v)
        by_source = group_by_source(neighbors, edge_type, k.size(0)) if grouped else ()
        mask = sum(1 << bit for bit, needed in enumerate(needs) if needed)
        return Gradients(
            *_native.ops(self.backend).sampled_attention_bwd(
                grad_out, grad_edge_out, grad_scores, q, k, v, out, edge_out, lse,
                neighbors, edge_type, list(by_source), *terms, *options, mask,
            )
        )  # fmt: skip
