"""The attention layers of Exphormer and Spexphormer, over the ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern import _processes, ops
from gtkern.graph import Graph

__all__ = [
    "EdgeTypeTerms",
    "ExphormerAttention",
    "NarrowAttention",
    "SampledAttention",
]


class EdgeTypeTerms(nn.Module):
    """What the type of an edge does to its score: a factor of the keys and an added bias.

    Args:
        width: C, the width of the type embedding and of all heads together.
        heads: H; divides width.

    Reference: Shirzad et al. 2024 (Spexphormer), section 4.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_scale = nn.Linear(width, width, bias=False)
        self.bias = nn.Linear(width, heads)

    def forward(self, type_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """From the type embedding [T, C], the factor [T, H, D] and the bias [T, H]."""
        key_scale = self.key_scale(type_embedding).view(type_embedding.size(0), self.heads, -1)
        return key_scale, self.bias(type_embedding)


class NarrowAttention(nn.Module):
    """The attention of Spexphormer's narrow first network, whose scores are sampled from later.

    For an edge e = j -> i of type t::

        v_j   = value_scale * v_j / |v_j|
        score = clamp((<q_i, k_j> / sqrt(D) * Σ_d key_scale[t, d] + bias[t]) / temperature, -8, 8)
        out_i = Σ_e exp(score) v_j / (Σ_e exp(score) + 1e-6)

    Args:
        width: C, input and output width.
        heads: H; the paper uses 1.
        normalize_values: False leaves the values as they are; for the paper's ablation.
        attend: sparse_attention, or a function of the same arguments.

    Reference: Shirzad et al. 2024 (Spexphormer), section 4.1.
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        normalize_values: bool = True,
        attend: Callable[..., Any] = ops.sparse_attention,
    ) -> None:
        super().__init__()
        self.width, self.heads = width, _check_heads(width, heads)
        self.attend = attend
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.value_scale: nn.Parameter | None
        scale = nn.Parameter(self.qkv.weight.new_tensor([0.25])) if normalize_values else None
        self.register_parameter("value_scale", scale)
        self.terms = EdgeTypeTerms(width, heads)

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        type_embedding: Tensor,
        temperature: float = 1.0,
        *,
        return_scores: bool = False,
    ) -> Any:
        """Attend over the graph.

        Args:
            x: [N, C].
            graph: the augmented graph, with edge types. Where it has more sources than x has rows,
                x is this process's part of them: the rows of all processes, by rank.
            type_embedding: [T, C].
            temperature: divides the scores, > 0.
            return_scores: also return the normalised scores.

        Returns:
            [N, C], or that and the scores [E, H] in the order the graph was given its edges.
        """
        q, k, v = self.qkv(x).view(x.size(0), self.heads, 3, -1).unbind(2)
        if self.value_scale is not None:
            v = functional.normalize(v, dim=-1) * self.value_scale
        if graph.num_src_nodes != x.size(0):
            k, v = _processes.gather_rows(torch.stack((k, v), dim=1)).unbind(1)
        key_scale, bias = self.terms(type_embedding)
        result = self.attend(
            q,
            k,
            v,
            graph,
            key_scale=key_scale.sum(-1, keepdim=True),
            bias=bias,
            clamp=8.0,
            temperature=temperature,
            normalization="exphormer",
            return_scores=return_scores,
        )
        if return_scores:
            return result[0].flatten(1), result[1]
        return result.flatten(1)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.width}, heads={self.heads}"


class SampledAttention(nn.Module):
    """The attention of Spexphormer's wide second network, over a fixed number of sampled edges.

    For the sampled edges e = j -> i of type t::

        score = clamp(Σ_d key_scale[t, d] k_j[d] q_i[d] + bias[t], -8, 8)
        out_i = Σ_e softmax(score) v_j

    Args:
        width: C, input and output width.
        heads: H; divides width.
        attend: sampled_attention, or a function of the same arguments.

    Reference: Shirzad et al. 2024 (Spexphormer), section 4.2.
    """

    def __init__(
        self, width: int, heads: int, *, attend: Callable[..., Any] = ops.sampled_attention
    ) -> None:
        super().__init__()
        self.width, self.heads = width, _check_heads(width, heads)
        self.attend = attend
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.terms = EdgeTypeTerms(width, heads)

    def forward(self, x: Tensor, layer: ops.LayerBatch, type_embedding: Tensor) -> Tensor:
        """Attend over the sampled edges of a layer.

        Args:
            x: [N_src, C].
            layer: as gtkern.ops.layer_batches gives it; the first N_dst sources attend.
            type_embedding: [T, C].

        Returns:
            [N_dst, C].
        """
        num_dst = layer.index.size(0)
        return self.attended(
            x[:num_dst], *self.keys_and_values(x), layer.index, layer.type, type_embedding
        )

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and the values [N, H, D] of x [N, C]."""
        shape = (x.size(0), self.heads, self.width // self.heads)
        return self.key(x).view(shape), self.value(x).view(shape)

    def attended(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        index: Tensor,
        edge_type: Tensor | None,
        type_embedding: Tensor,
    ) -> Tensor:
        """What x [N_dst, C] gets from its neighbours `index` [N_dst, k]; gives [N_dst, C]."""
        key_scale, bias = self.terms(type_embedding)
        out: Tensor = self.attend(
            self.query(x).view(x.size(0), self.heads, -1),
            keys,
            values,
            index,
            scale=1.0,
            key_scale=key_scale,
            bias=bias,
            edge_type=edge_type,
            clamp=8.0,
        )
        return out.flatten(1)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.width}, heads={self.heads}"


class ExphormerAttention(nn.Module):
    """Exphormer's attention over an augmented graph; no output projection.

    For an edge e = j -> i of type t::

        score = clamp(Σ_d key_scale[t, d] k_j[d] q_i[d] / sqrt(D), -5, 5)
        out_i = Σ_e exp(score) v_j / (Σ_e exp(score) + 1e-6)

    Args:
        width: C, input and output width.
        heads: H; divides width.
        attend: sparse_attention, or a function of the same arguments; without a prefix it is called
            without those of one.

    Reference: Shirzad et al. 2023 (Exphormer), section 3.
    """

    def __init__(
        self, width: int, heads: int, *, attend: Callable[..., Any] = ops.sparse_attention
    ) -> None:
        super().__init__()
        self.width, self.heads = width, _check_heads(width, heads)
        self.attend = attend
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.key_scale = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        type_embedding: Tensor,
        prefix_k: Tensor | None = None,
        prefix_v: Tensor | None = None,
    ) -> Tensor:
        """Attend over the graph.

        Args:
            x: [N, C].
            graph: the augmented graph, with edge types.
            type_embedding: [T, C].
            prefix_k, prefix_v: [P, H, D] each: keys and values that every node sees besides its
                edges, not projected; they have no type.

        Returns:
            [N, C].
        """
        q, k, v = self.qkv(x).view(x.size(0), 3, self.heads, -1).unbind(1)
        # under autocast the projections are narrower than parameters
        prefix = {
            name: part.to(q.dtype)
            for name, part in (("prefix_k", prefix_k), ("prefix_v", prefix_v))
            if part is not None
        }
        out: Tensor = self.attend(
            q,
            k,
            v,
            graph,
            key_scale=self.key_scale(type_embedding).view(type_embedding.size(0), self.heads, -1),
            clamp=5.0,
            normalization="exphormer",
            **prefix,
        )
        return out.flatten(1)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [P, H, D] of rows x [P, C] that ask nothing: a prefix."""
        rows = functional.linear(x, self.qkv.weight[self.width :])
        k, v = rows.view(x.size(0), 2, self.heads, -1).unbind(1)
        return k, v

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.width}, heads={self.heads}"


def _check_heads(width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide width {width}, got {heads}")
    return heads
