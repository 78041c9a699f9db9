"""The cpu and cuda backends: csrc/ragged_attention, one schema for both; torch picks by device."""

from __future__ import annotations

from torch import Tensor

from gtkern import _native
from gtkern.ops.ragged_attention.call import (
    Batch,
    Bias,
    Forward,
    Gradients,
    Needs,
    Options,
    Prefix,
)


class Native:
    """The kernels of one library: backend "cpu" or "cuda"."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Batch,
        bias: Bias,
        prefix: Prefix,
        options: Options,
    ) -> Forward:
        """See Forward."""
        return Forward(
            *_native.ops(self.backend).ragged_attention_fwd(
                q, k, v, *batch, *bias, *prefix, *options
            )
        )

    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        batch: Batch,
        bias: Bias,
        prefix: Prefix,
        options: Options,
        needs: Needs,
    ) -> Gradients:
        """See Gradients."""
        mask = sum(1 << bit for bit, needed in enumerate(needs) if needed)
        return Gradients(
            *_native.ops(self.backend).ragged_attention_bwd(
                grad_out, q, k, v, out, lse, *batch, *bias, *prefix, *options, mask
            )
        )
