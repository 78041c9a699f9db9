"""The cpu and cuda backends: csrc/block_sparse_linear, one schema; torch picks by device."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern import _native
from gtkern.ops.block_sparse_linear.call import ACTIVATIONS, Forward, Gradients, Needs, Weight


def _tf32() -> bool:
    """Whether a GPU may multiply fp32 numbers as tf32: as torch's own products do."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


class Native:
    """The kernels of one library: backend "cpu" or "cuda"."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def forward(
        self, x: Tensor, weight: Weight, bias: Tensor | None, activation: str, keep: bool
    ) -> Forward:
        """See Forward."""
        return Forward(
            *_native.ops(self.backend).block_sparse_linear_fwd(
                x,
                weight.values,
                *weight.blocks,
                weight.out_features,
                bias,
                ACTIVATIONS.index(activation),
                keep,
                _tf32(),
            )
        )

    def backward(
        self,
        grad_out: Tensor,
        x: Tensor,
        weight: Weight,
        kept: Tensor,
        activation: str,
        needs: Needs,
    ) -> Gradients:
        """See Gradients; `kept` is the output for relu, else what forward kept."""
        mask = sum(1 << bit for bit, needed in enumerate(needs) if needed)
        return Gradients(
            *_native.ops(self.backend).block_sparse_linear_bwd(
                grad_out,
                x,
                weight.values,
                *weight.blocks,
                kept,
                ACTIVATIONS.index(activation),
                mask,
                _tf32(),
            )
        )
