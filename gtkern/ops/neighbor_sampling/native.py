"""The cpu and cuda backends: csrc/neighbor_sampling, one schema for both."""

from __future__ import annotations

from torch import Tensor

from gtkern import _native
from gtkern.graph import Adjacency


def forward(
    backend: str,
    csr: Adjacency,
    weight: Tensor | None,
    prefix: Tensor | None,
    k: list[int],
    seed: int,
    epoch: int,
    method: str,
    pad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample every layer; arguments and results as in reference.py."""
    index, edge, kind = _native.ops(backend).sample_neighbors(
        csr.ptr,
        csr.index,
        csr.edge_id,
        csr.edge_type,
        weight,
        prefix,
        k,
        seed,
        epoch,
        method == "top",
        pad,
    )
    return index, edge, kind
