"""Where the lazy solver left each node (Xue et al. 2023, LazyGNN): its solution and its adjoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gtkern.methods.leading.bank import MemoryBank
from gtkern.methods.leading.blocks import Block
from gtkern.methods.leading.network import Start

__all__ = ["LazyMemory"]


class LazyMemory:
    """Solutions and adjoints of the nodes, taken up where training left them.

    Args:
        num_nodes: N. width: C.
        beta, theta: shares of the new in the start; see gtkern.ops.propagate.
        identity: of the graph; see MemoryBank.
    """

    def __init__(
        self, num_nodes: int, width: int, *, beta: float, theta: float, identity: str
    ) -> None:
        self.solutions = MemoryBank(num_nodes, width, dtype="float32", identity=identity)
        self.adjoints = MemoryBank(num_nodes, width, dtype="float32", identity=identity)
        self.beta = beta
        self.theta = theta

    def start(self, block: Block, step: int) -> Start:
        """The start of a block's nodes; what its targets end with is kept."""
        z, beta = _last(self.solutions, block.nodes, self.beta)
        g, theta = _last(self.adjoints, block.nodes, self.theta)
        targets, count = block.targets, block.num_targets

        def keep(solution: Tensor) -> None:
            self.solutions.write(targets, solution[:count], step=step)

        def keep_gradient(adjoint: Tensor) -> None:
            self.adjoints.write(targets, adjoint[:count], step=step)

        return Start(z, g, beta, theta, keep, keep_gradient)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has of it."""
        return {
            "solutions": self.solutions.state_dict(),
            "adjoints": self.adjoints.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.solutions.load_state_dict(state["solutions"])
        self.adjoints.load_state_dict(state["adjoints"])


def _last(bank: MemoryBank, nodes: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The rows of some nodes, 0 where there is none, and the share of the new in their start."""
    visited = bank.visited(nodes)
    rows = torch.zeros(nodes.numel(), bank.width, device=nodes.device)
    rows[visited] = bank.read(nodes[visited]).to(nodes.device)
    return rows, torch.where(visited, share, 1.0)
