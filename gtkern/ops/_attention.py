"""What the rooms of softmax attention share: the description of a call, and its checks."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from gtkern import _check

EXPHORMER_EPS = 1e-6
_LARGEST = sys.float_info.max
NORMALIZATION_EPS = {"softmax": 0.0, "exphormer": EXPHORMER_EPS}

TERMS_SCHEMA = (
    "Tensor? key_table, Tensor? bias_table, Tensor? key_edge, Tensor? bias_edge, "
    "Tensor? edge_query, Tensor? edge_attr"
)
OPTIONS_SCHEMA = (
    "float scale, float clamp, float temperature, float dropout, float eps, Tensor? seed"
)


class Terms(NamedTuple):
    """The optional inputs of a score.

    Backends get tables and per-edge terms in the accumulation dtype (see `widened`).

    Attributes:
        key_table: [T, H, D]; multiplies the keys, by edge type.
        bias_table: [T, H]; added to the score, by edge type.
        key_edge: [E, H, D]; multiplies the keys, by edge.
        bias_edge: [E, H]; added to the score, by edge.
        edge_query: [N_dst, H, De], dtype of q; with edge_attr adds their product to the score.
        edge_attr: [E, De], dtype of q.

    In sparse_attention, E counts edges in the caller's order: the edge at position p of an
    adjacency is edge_id[p], or p where edge_id is empty. In sampled_attention, E stands for two
    dimensions N_dst, K: the places of the neighbours.
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


def numbers(
    width: int,
    scale: float | None,
    clamp: float | None,
    temperature: float,
    dropout: float,
    normalization: str,
) -> tuple[float, float, float, float, float]:
    """Check the numbers of a call: (scale, clamp, temperature, dropout, eps) of `Options`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(normalization, str) or normalization not in NORMALIZATION_EPS:
        raise ValueError(f"normalization must be 'softmax' or 'exphormer', got {normalization!r}")
    return (
        width**-0.5 if scale is None else _check.number("scale", scale, -_LARGEST, _LARGEST),
        math.inf if clamp is None else _check.number("clamp", clamp, 0, math.inf, open_low=True),
        _check.number("temperature", temperature, 0, math.inf, open_low=True),
        _check.dropout(dropout),
        NORMALIZATION_EPS[normalization],
    )


def options(numbers: tuple[float, float, float, float, float], seed: Tensor | None) -> Options:
    """`Options` from the numbers of a call and the seed of its dropout, if any."""
    scale, clamp, temperature, dropout, eps = numbers
    return Options(scale, clamp, temperature, dropout, eps, 0 if seed is None else int(seed))


def accumulation_dtype(q: Tensor) -> torch.dtype:
    """The dtype in which a call is summed."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def widened(terms: Terms, q: Tensor) -> Terms:
    """The terms as backends read them: `Terms` dtypes, key scales of full width, and tables of one
    number of types, which kernels read and write both by.

    Made anew for each pass, so that backward keeps what the caller gave and no copy of it.
    """
    work = accumulation_dtype(q)

    def wide(term: Tensor | None) -> Tensor | None:
        return None if term is None else term.to(work).contiguous()

    tables = [each for each in (terms.key_table, terms.bias_table) if each is not None]
    types = max((table.size(0) for table in tables), default=0)

    def whole(table: Tensor | None) -> Tensor | None:
        if table is None or table.size(0) == types:
            return table
        more = table.new_zeros(types - table.size(0), *table.shape[1:])
        return torch.cat((table, more))

    def full(term: Tensor | None) -> Tensor | None:
        return wide(None if term is None else term.expand(*term.shape[:-1], q.size(-1)))

    return Terms(
        full(whole(terms.key_table)),
        wide(whole(terms.bias_table)),
        full(terms.key_edge),
        wide(terms.bias_edge),
        terms.edge_query,
        terms.edge_attr,
    )


def narrowed(gradients: Gradients, terms: Terms, needs: Needs) -> Gradients:
    """Gradients of `widened` terms in the shapes and dtypes of the terms that were given."""
    result = gradients._asdict()
    for name, term in terms._asdict().items():
        if term is not None and getattr(needs, name):
            gradient = result[name]
            if gradient.size(0) != term.size(0):
                gradient = gradient[: term.size(0)].contiguous()
            if gradient.size(-1) != term.size(-1):
                gradient = gradient.sum(-1, keepdim=True)
            result[name] = gradient.to(term.dtype)
    return Gradients(**result)
