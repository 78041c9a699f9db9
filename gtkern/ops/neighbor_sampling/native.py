"""The cpu and cuda backends: csrc/neighbor_sampling, one schema for both."""

from __future__ import annotations

from torch import Tensor

from gtkern import _native
from gtkern.graph import Adjacency
from gtkern.ops.neighbor_sampling.table import sorted_weight


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
    if backend == "cuda":
        weight, prefix = sorted_weight(csr, weight, prefix)
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
