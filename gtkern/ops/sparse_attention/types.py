"""What the op hands to its backends, each described once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """The optional inputs of a score. Tables and per-edge biases have the accumulation dtype.

    Attributes:
        key_table: [T, H, D]; multiplies the keys, by edge type.
        bias_table: [T, H]; added to the score, by edge type.
        key_edge: [E, H, D]; multiplies the keys, by edge.
        bias_edge: [E, H]; added to the score, by edge.
        edge_query: [N_dst, H, De], dtype of q; with edge_attr adds their product to the score.
        edge_attr: [E, De], dtype of q.

    Everything per edge is in the caller's order: the edge at position p of an adjacency is
    edge_id[p], or p where edge_id is empty.
    """

    key_table: Tensor | None = None
    bias_table: Tensor | None = None
    key_edge: Tensor | None = None
    bias_edge: Tensor | None = None
    edge_query: Tensor | None = None
    edge_attr: Tensor | None = None


class Options(NamedTuple):
    """The numbers of a call.

    Attributes:
        scale: multiplies the products (not the bias).
        clamp: scores are held in [-clamp, clamp]; inf: no clamp.
        temperature: divides scale * products + bias, before the clamp.
        dropout: probability that a normalised score is dropped.
        eps: added to every softmax denominator Σ exp(score): 0, or Exphormer's 1e-6.
        seed: 64 bits for the dropout mask; 0 without dropout.
    """

    scale: float
    clamp: float
    temperature: float
    dropout: float
    eps: float
    seed: int


class Forward(NamedTuple):
    """Attributes:
    out: [N_dst, H, Dv], dtype of q.
    edge_out: [N_dst, H, De], dtype of q; has no elements without edge_attr.
    lse: [N_dst, H], accumulation dtype: log(eps + Σ exp(score)); -inf for a row of weight 0.
        A normalised score is exp(score - lse).
    scores: [E, H], accumulation dtype, caller's order: the normalised scores before dropout; has no
        elements unless asked for.
    """

    out: Tensor
    edge_out: Tensor
    lse: Tensor
    scores: Tensor


class Gradients(NamedTuple):
    """One for each differentiable input, in its shape and dtype; no elements where not needed."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_table: Tensor
    bias_table: Tensor
    key_edge: Tensor
    bias_edge: Tensor
    edge_query: Tensor
    edge_attr: Tensor


class Needs(NamedTuple):
    """Which gradients are wanted."""

    q: bool
    k: bool
    v: bool
    key_table: bool
    bias_table: bool
    key_edge: bool
    bias_edge: bool
    edge_query: bool
    edge_attr: bool
