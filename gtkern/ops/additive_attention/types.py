"""What the op hands to its backends."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Forward", "Gradients", "Inputs", "Needs", "Options"]


class Inputs(NamedTuple):
    """The differentiable arguments, contiguous, of one dtype.

    Attributes:
        q: [N_dst, H, D].
        k: [N_src, H, D].
        v: [N_src, H, D]; None: k.
        attention: [H, D].
        edge_attr: [E, H, D] in the caller's order: the edge at position p of an adjacency is
            edge_id[p], or p where edge_id is empty. None: zeros.
    """

    q: Tensor
    k: Tensor
    v: Tensor | None
    attention: Tensor
    edge_attr: Tensor | None


class Options(NamedTuple):
    """The numbers of a call.

    Attributes:
        negative_slope: of the LeakyReLU.
        dropout: probability that a normalised score is dropped.
        seed: 64 bits for the dropout mask; 0 without dropout.
    """

    negative_slope: float
    dropout: float
    seed: int


class Forward(NamedTuple):
    """Attributes:
    out: [N_dst, H, D], dtype of q.
    lse: [N_dst, H], float32, or float64 with float64 q: log Σ exp(score); -inf for a row of weight
        0. A normalised score is exp(score - lse).
    scores: [E, H], dtype of lse, caller's order: the normalised scores before dropout; has no
        elements unless asked for.
    """

    out: Tensor
    lse: Tensor
    scores: Tensor


class Gradients(NamedTuple):
    """One for each of Inputs, in its shape and dtype; no elements where not needed.

    Without a v, that of k holds both of its shares.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    attention: Tensor
    edge_attr: Tensor


class Needs(NamedTuple):
    """Which gradients are wanted."""

    q: bool
    k: bool
    v: bool
    attention: bool
    edge_attr: bool
