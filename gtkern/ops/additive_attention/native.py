"""The cpu and cuda backends: csrc/additive_attention, one schema for both."""

from __future__ import annotations

from torch import Tensor

from gtkern import _native
from gtkern.graph import Adjacency
from gtkern.ops.additive_attention.types import Forward, Gradients, Inputs, Needs, Options


class Native:
    """The kernels of one library: backend "cpu" or "cuda"."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def forward(
        self, inputs: Inputs, csr: Adjacency, options: Options, return_scores: bool
    ) -> Forward:
        """See types.Forward."""
        return Forward(
            *_native.ops(self.backend).additive_attention_fwd(
                *inputs, csr.ptr, csr.index, csr.edge_id, *options, return_scores
            )
        )

    def backward(
        self,
        grad_out: Tensor,
        grad_scores: Tensor | None,
        inputs: Inputs,
        out: Tensor,
        lse: Tensor,
        csr: Adjacency,
        csc: Adjacency,
        options: Options,
        needs: Needs,
    ) -> Gradients:
        """See types.Gradients."""
        mask = sum(1 << bit for bit, needed in enumerate(needs) if needed)
        return Gradients(
            *_native.ops(self.backend).additive_attention_bwd(
                grad_out,
                grad_scores,
                *inputs,
                out,
                lse,
                csr.ptr,
                csr.index,
                csr.edge_id,
                csc.ptr,
                csc.index,
                csc.edge_id,
                *options,
                mask,
            )
        )
