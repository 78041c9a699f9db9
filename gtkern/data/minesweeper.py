"""The Minesweeper graph, generated: the same rules as the published one, nothing to download."""

from __future__ import annotations

import torch

from gtkern.data.node import NodeData, random_split

__all__ = ["minesweeper"]


def minesweeper(
    seed: int = 0, *, rows: int = 100, mine_share: float = 0.2, unknown_share: float = 0.5
) -> NodeData:
    """Draw a minesweeper field: find the mines from the neighbour counts that half the cells show.

    The nodes are the cells of a square grid, joined to their (at most 8) neighbours. The label is 1
    for a mine. Exactly one of 7 binary features is set: column 0 for a cell that shows nothing,
    else column 1 + min(mines around it, 5). Half of the nodes are for training, a quarter each for
    validation and test.

    Args:
        seed: of mines, shown cells and split.
        rows: cells along a side of the grid, >= 2.
        mine_share: part of the cells that are mines, in (0, 1).
        unknown_share: part of the cells that show nothing, in [0, 1].

    Reference: Platonov et al. 2023, "A critical look at the evaluation of GNNs under
    heterophily", appendix.
    """
    if rows < 2:
        raise ValueError(f"rows must be at least 2, got {rows}")
    num_nodes = rows * rows
    generator = torch.Generator().manual_seed(seed)
    mines = torch.zeros(num_nodes, dtype=torch.int64)
    mines[torch.randperm(num_nodes, generator=generator)[: round(mine_share * num_nodes)]] = 1
    unknown = torch.randperm(num_nodes, generator=generator)[: round(unknown_share * num_nodes)]

    cell = torch.arange(num_nodes).view(rows, rows)
    half = torch.cat(
        [
            torch.stack((first.flatten(), second.flatten()))
            for first, second in (
                (cell[:, :-1], cell[:, 1:]),
                (cell[:-1], cell[1:]),
                (cell[:-1, :-1], cell[1:, 1:]),
                (cell[:-1, 1:], cell[1:, :-1]),
            )
        ],
        dim=1,
    )
    edge_index = torch.cat((half, half.flip(0)), dim=1)
    around = torch.zeros(num_nodes, dtype=torch.int64).index_add(
        0, edge_index[1], mines[edge_index[0]]
    )
    column = 1 + around.clamp(max=5)
    column[unknown] = 0
    x = torch.nn.functional.one_hot(column, 7).to(torch.float32)
    return NodeData(x, mines, edge_index, *random_split(num_nodes, (0.5, 0.25), generator))
