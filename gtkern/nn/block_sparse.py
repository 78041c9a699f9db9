"""A linear layer that keeps only some blocks of its weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gtkern import ops
from gtkern.block_sparse import BlockIndex, BlockSparseMatrix

__all__ = ["BlockSparseLinear"]


class BlockSparseLinear(nn.Module):
    """torch.nn.Linear with a block-sparse weight, and an activation behind it if asked for.

    Which blocks are kept does not change in training; prune `layer.weight` and make a new layer to
    change it. Loading a state dict of the same shape and number of blocks brings its structure too.

    Args:
        weight: C_out by C_in; its values become the parameter `values`.
        bias: [C_out], which becomes a parameter, or None.
        activation: None, "relu", "gelu" or "silu".
    """

    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, weight: BlockSparseMatrix, bias: Tensor | None = None, activation: str | None = None
    ) -> None:
        super().__init__()
        if bias is not None and list(bias.shape) != [weight.shape[0]]:
            raise ValueError(
                f"bias must have shape [C_out] = [{weight.shape[0]}], got {list(bias.shape)}"
            )
        self.shape, self.block, self.activation = weight.shape, weight.block, activation
        self.values = nn.Parameter(weight.values.detach().clone())
        offset = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_parameter("bias", offset)
        for name, part in zip(BlockIndex._fields, weight.index, strict=True):
            self.register_buffer(name, part.clone())

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        block: tuple[int, int] | int,
        *,
        keep: float | None = None,
        mask: Tensor | None = None,
        activation: str | None = None,
    ) -> BlockSparseLinear:
        """The kept blocks of a dense layer's weight, and its bias.

        Args:
            linear: the dense layer, left as it is.
            block, keep, mask: see BlockSparseMatrix.from_dense.
            activation: None, "relu", "gelu" or "silu".
        """
        weight = BlockSparseMatrix.from_dense(linear.weight, block, keep=keep, mask=mask)
        return cls(weight, linear.bias, activation)

    @property
    def weight(self) -> BlockSparseMatrix:
        """The weight, whose values are the parameter."""
        index = BlockIndex(*(getattr(self, name) for name in BlockIndex._fields))
        return BlockSparseMatrix(self.values, index, self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """activation(x Wᵀ + bias): [..., C_in] to [..., C_out]."""
        weight = self.weight
        bias: Tensor | None = self.bias
        device = x.device.type
        if torch.is_autocast_enabled(device):
            # as torch.nn.Linear does by itself
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype=dtype)
            bias = None if bias is None else bias.to(dtype)
        return ops.block_sparse_linear(x, weight, bias, self.activation)

    def extra_repr(self) -> str:
        """The sizes."""
        behind = "" if self.activation is None else f", activation={self.activation!r}"
        return (
            f"in_features={self.shape[1]}, out_features={self.shape[0]}, block={self.block}, "
            f"density={self.weight.density:.3g}, bias={self.bias is not None}{behind}"
        )
