"""The triton backend: the shared kernels on rows of K places."""

from __future__ import annotations

from torch import Tensor

from gtkern.ops import _triton_attention
from gtkern.ops._attention import Forward, Gradients, Needs, Options, Terms
from gtkern.ops._triton_attention import Rows
from gtkern.ops.sampled_attention.places import group_by_source


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbors: Tensor,
    edge_type: Tensor,
    terms: Terms,
    options: Options,
    return_scores: bool,
) -> Forward:
    """See Forward."""
    shape = (*neighbors.shape, q.size(1)) if return_scores else None
    rows = Rows.of_places(neighbors, edge_type)
    return _triton_attention.forward(q, k, v, rows, terms, options, shape)


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
    neighbors: Tensor,
    edge_type: Tensor,
    terms: Terms,
    options: Options,
    needs: Needs,
) -> Gradients:
    """See Gradients."""
    columns = None
    if needs.k or needs.v:
        columns = Rows.of_adjacency(group_by_source(neighbors, edge_type, k.size(0)))
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
        Rows.of_places(neighbors, edge_type),
        columns,
        terms,
        options,
        needs,
    )
