"""The cpu backend: csrc/sampled_attention."""

from __future__ import annotations

from torch import Tensor

from gtkern import _native
from gtkern.ops._attention import Forward, Gradients, Needs, Options, Terms


class Native:
    """The kernels of one library."""

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
        mask = sum(1 << bit for bit, needed in enumerate(needs) if needed)
        return Gradients(
            *_native.ops(self.backend).sampled_attention_bwd(
                grad_out, grad_edge_out, grad_scores, q, k, v, out, edge_out, lse,
                neighbors, edge_type, *terms, *options, mask,
            )
        )  # fmt: skip
