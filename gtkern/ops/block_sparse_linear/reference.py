"""The specification of block_sparse_linear: plain PyTorch, differentiable by autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gtkern.block_sparse import BlockSparseMatrix


def forward(x: Tensor, weight: BlockSparseMatrix, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x Wᵀ + bias), W with zeros for the blocks that are not kept."""
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    product = x.to(work) @ weight.to(dtype=work).to_dense().T
    if bias is not None:
        product = product + bias.to(work)
    if activation == "relu":
        product = functional.relu(product)
    elif activation == "gelu":
        product = functional.gelu(product)
    elif activation == "silu":
        product = functional.silu(product)
    return product.to(x.dtype)
