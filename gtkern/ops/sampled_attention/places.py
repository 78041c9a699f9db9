"""The places of sampled neighbours grouped by neighbour, on the device that holds them."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern.graph import Adjacency, heavy_items

__all__ = ["group_by_source"]


def group_by_source(neighbors: Tensor, edge_type: Tensor, num_src: int) -> Adjacency:
    """The places that name each source, in their order; never waits for the device.

    Args:
        neighbors: int32 [N_dst, K], -1 for a place without a neighbour.
        edge_type: uint8 [N_dst, K] or [0].
        num_src: N_src.

    Returns:
        Rows of sources, `index` the destinations, `edge_id` the places i * K + m. Its arrays are as
        long as there are places: entries behind ptr[-1] belong to no source, and items of `heavy`
        behind the last are (-1, -1, -1).
    """
    flat = neighbors.flatten()
    source, place = torch.where(flat < 0, num_src, flat).sort(stable=True)
    rows = torch.arange(num_src + 1, dtype=torch.int32, device=flat.device)
    ptr = torch.searchsorted(source, rows)
    destination = (place // max(neighbors.size(1), 1)).to(torch.int32)
    types = edge_type.flatten()
    types = types[place] if types.numel() else types
    return Adjacency(ptr, destination, place, types, heavy_items(ptr, flat.numel()))
