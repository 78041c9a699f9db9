"""Multi-head attention over a packed batch of graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern import ops
from gtkern.ragged import PairIndex, Ragged

__all__ = ["RaggedMultiheadAttention"]


class RaggedMultiheadAttention(nn.Module):
    """What torch.nn.MultiheadAttention computes inside each graph, without padding.

    Its state dict is that of torch.nn.MultiheadAttention(embed_dim, num_heads), which loads here,
    and the other way round.

    Args:
        embed_dim: C, input and output width.
        num_heads: H; divides embed_dim.
        dropout: of the normalised scores, in training.
        bias: of the projections.
        scale: multiplies the scores; default (C / H) ** -0.5.
        attend: ragged_attention, or a function of the same arguments.

    Reference: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        scale: float | None = None,
        attend: Callable[..., Tensor] = ops.ragged_attention,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads must divide embed_dim {embed_dim}, got {num_heads}")
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.scale, self.attend = scale, attend
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias: nn.Parameter | None
        offset = nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None
        self.register_parameter("in_proj_bias", offset)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        ragged: Ragged,
        bias: Sequence[tuple[PairIndex, Tensor]] = (),
        prefix_k: Tensor | None = None,
        prefix_v: Tensor | None = None,
    ) -> Tensor:
        """Attend inside each graph.

        Args:
            x: [N, C].
            ragged: the graphs of the batch.
            bias: see gtkern.ops.ragged_attention.
            prefix_k, prefix_v: [P, H, D] each, D = C / H: keys and values that every node sees
                besides, not projected.

        Returns:
            [N, C].
        """
        projected = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.view(x.size(0), 3, self.num_heads, -1).unbind(1)
        out = self.attend(
            q,
            k,
            v,
            ragged,
            bias=bias,
            # under autocast the projections are narrower than parameters
            prefix_k=None if prefix_k is None else prefix_k.to(q.dtype),
            prefix_v=None if prefix_v is None else prefix_v.to(q.dtype),
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        projected_out: Tensor = self.out_proj(out.flatten(1))
        return projected_out

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}"
