"""The triton backend: the shared kernels on the rows of a graph."""

from __future__ import annotations

from torch import Tensor

from gtkern.graph import Adjacency
from gtkern.ops import _triton_attention
from gtkern.ops._triton_attention import Rows
from gtkern.ops.sparse_attention.types import Forward, Gradients, Needs, Options, Terms


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    csr: Adjacency,
    terms: Terms,
    options: Options,
    return_scores: bool,
) -> Forward:
    """See types.Forward."""
    shape = (csr.index.numel(), q.size(1)) if return_scores else None
    return _triton_attention.forward(q, k, v, Rows.of_adjacency(csr), terms, options, shape)


def backward(
    grad_out: Tensor,
    grad_edge_out: Tensor | None,
    grad_scores: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    edge_out: Tensor,
    lse: Tensor,
    csr: Adjacency,
    csc: Adjacency,
    terms: Terms,
    options: Options,
    needs: Needs,
    partial: bool = False,
) -> Gradients:
    """See types.Gradients.

    Args:
        partial: rows attend to more than their edges, and out, edge_out and lse are of all: these
            kernels take delta from them in any case.
    """
    return _triton_attention.backward(
        grad_out,
        grad_edge_out,
        grad_scores,
        q,
        k,
        v,
        out,
        edge_out,
        lse,
        Rows.of_adjacency(csr),
        Rows.of_adjacency(csc),
        terms,
        options,
        needs,
    )
