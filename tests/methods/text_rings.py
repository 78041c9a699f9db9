"""A graph of thirty short texts: two rings that touch in one edge."""

from __future__ import annotations

import torch

from gtkern.data.text_graph import TextGraph

__all__ = ["rings"]


def rings() -> TextGraph:
    """Texts of three words out of six, some of them equal; the classes are the rings."""
    generator = torch.Generator().manual_seed(0)
    ring = torch.stack((torch.arange(15), (torch.arange(15) + 1) % 15))
    one_way = torch.cat((ring, ring + 15, torch.tensor([[0], [20]])), dim=1)
    words = ["red", "green", "blue", "round", "square", "thin"]
    texts = [
        " ".join(words[int(pick)] for pick in torch.randint(6, (3,), generator=generator))
        for _ in range(30)
    ]
    masks = torch.zeros(3, 30, dtype=torch.bool)
    for part in range(3):
        masks[part, part::3] = True
    y = torch.arange(30) // 15
    edges = torch.cat((one_way, one_way.flip(0)), dim=1)
    return TextGraph(texts, y, edges, masks[0], masks[1], masks[2], ("one", "two"), "rings")
