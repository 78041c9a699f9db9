"""Multi-head attention over a packed batch of graphs."""

from __future__ import annotations

import itertools
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
    and the other way round, unless `head_dim` is given. With `head_dim` the heads need not fill the
    width: the projections are in [3 H D, C] and [C, H D].

    Args:
        embed_dim: C, input and output width.
        num_heads: H; divides embed_dim, unless head_dim is given.
        dropout: of the normalised scores, in training.
        bias: of the projections.
        head_dim: D; default C / H.
        scale: multiplies the scores; default D ** -0.5.
        attend: ragged_attention, or a function of the same arguments.

    Attributes:
        heads: of a module that has lost heads, those it still has, by their numbers in the columns
            of bias tables and in prefixes; None: all.

    Reference: Vaswani et al. 2017, section 3.2.2.
    """

    _columns: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        head_dim: int | None = None,
        scale: float | None = None,
        attend: Callable[..., Tensor] = ops.ragged_attention,
    ) -> None:
        super().__init__()
        if head_dim is None:
            if num_heads < 1 or embed_dim % num_heads:
                raise ValueError(f"num_heads must divide embed_dim {embed_dim}, got {num_heads}")
            head_dim = embed_dim // num_heads
        for name, value in (("num_heads", num_heads), ("head_dim", head_dim)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.dropout, self.scale, self.attend = dropout, scale, attend
        self.heads: tuple[int, ...] | None = None
        inner = num_heads * head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, embed_dim))
        self.in_proj_bias: nn.Parameter | None
        offset = nn.Parameter(torch.zeros(3 * inner)) if bias else None
        self.register_parameter("in_proj_bias", offset)
        self.out_proj = nn.Linear(inner, embed_dim, bias=bias)
        self.register_buffer("_columns", None, persistent=False)
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
        prefix_set: Tensor | None = None,
    ) -> Tensor:
        """Attend inside each graph.

        Args:
            x: [N, C].
            ragged: the graphs of the batch.
            bias: see gtkern.ops.ragged_attention.
            prefix_k, prefix_v: [P, H, D] each: keys and values that every node sees besides, not
                projected. Where the module has lost heads, H is what it was, here and in `bias`.
            prefix_set: int64 [G]: the prefixes are sets [S, P, H, D], of which each graph's nodes
                see this one; -1: none.

        Returns:
            [N, C].
        """
        projected = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.view(x.size(0), 3, self.num_heads, self.head_dim).unbind(1)
        if self._columns is not None:
            bias = [(index, table.index_select(1, self._columns)) for index, table in bias]
            prefix_k, prefix_v = (
                None if prefix is None else prefix.index_select(-2, self._columns)
                for prefix in (prefix_k, prefix_v)
            )
        out = self.attend(
            q,
            k,
            v,
            ragged,
            bias=bias,
            # under autocast the projections are narrower than parameters
            prefix_k=None if prefix_k is None else prefix_k.to(q.dtype),
            prefix_v=None if prefix_v is None else prefix_v.to(q.dtype),
            prefix_set=prefix_set,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        projected_out: Tensor = self.out_proj(out.flatten(1))
        return projected_out

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of rows that ask nothing: what `forward` takes as a prefix.

        Args:
            x: [P, C].

        Returns:
            [P, H, D] each. Where the module has lost heads, those are 0 and H is what it was, or
            less by the last ones lost.
        """
        inner = self.num_heads * self.head_dim
        offset = None if self.in_proj_bias is None else self.in_proj_bias[inner:]
        projected = functional.linear(x, self.in_proj_weight[inner:], offset)
        k, v = projected.view(x.size(0), 2, self.num_heads, self.head_dim).unbind(1)
        if self._columns is None or self.heads is None:
            return k, v
        zeros = k.new_zeros(x.size(0), self.heads[-1] + 1, self.head_dim)
        return zeros.index_copy(1, self._columns, k), zeros.index_copy(1, self._columns, v)

    def keep_heads(self, heads: Sequence[int]) -> RaggedMultiheadAttention:
        """A module with some of the heads, and their rows and columns of the projections.

        What the other heads give is gone; `scale` stays what it was.

        Args:
            heads: 0 .. num_heads - 1, rising, at least one.

        Raises:
            ValueError: they are not so.
        """
        chosen = [int(head) for head in heads]
        rising = all(a < b for a, b in itertools.pairwise(chosen))
        if not chosen or not rising or chosen[0] < 0 or chosen[-1] >= self.num_heads:
            raise ValueError(
                f"heads must be one or more of 0 .. {self.num_heads - 1}, rising, got {chosen}"
            )
        kept = RaggedMultiheadAttention(
            self.embed_dim,
            len(chosen),
            self.dropout,
            self.in_proj_bias is not None,
            head_dim=self.head_dim,
            scale=self.scale,
            attend=self.attend,
        )
        before = range(self.num_heads) if self.heads is None else self.heads
        kept.heads = tuple(before[head] for head in chosen)
        weight = self.in_proj_weight
        kept.to(weight.device, weight.dtype).train(self.training)
        kept._columns = torch.tensor(kept.heads, device=weight.device)
        lanes = torch.arange(self.head_dim, device=weight.device)
        at = torch.tensor(chosen, device=weight.device)[:, None] * self.head_dim + lanes
        parts = torch.arange(3, device=weight.device)[:, None] * (self.num_heads * self.head_dim)
        rows = (parts + at.flatten()).flatten()
        with torch.no_grad():
            kept.in_proj_weight.copy_(weight[rows])
            kept.out_proj.weight.copy_(self.out_proj.weight[:, at.flatten()])
            if self.in_proj_bias is not None and kept.in_proj_bias is not None:
                kept.in_proj_bias.copy_(self.in_proj_bias[rows])
                kept.out_proj.bias.copy_(self.out_proj.bias)
        return kept

    def extra_repr(self) -> str:
        """The sizes."""
        kept = "" if self.heads is None else f", heads={list(self.heads)}"
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}{kept}, "
            f"dropout={self.dropout}"
        )
