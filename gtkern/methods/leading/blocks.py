"""What a batch sees of the graph: its nodes, their sampled neighbours, the edges among them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import subgraph

from gtkern import ops
from gtkern.graph import Graph

__all__ = ["Block", "Blocks"]


@dataclass
class Block:
    """A part of the graph.

    Attributes:
        nodes: int64 [n]; numbers in the whole graph: the targets, then their neighbours.
        num_targets: b.
        num_labelled: the first of the targets, whose labels the loss reads.
        edge_index: int64 [2, e]; places in `nodes`, self loops among them.
        weight: float32 [e]; of the edges, as in the whole graph.
    """

    nodes: Tensor
    num_targets: int
    num_labelled: int
    edge_index: Tensor
    weight: Tensor

    @property
    def targets(self) -> Tensor:
        """The nodes that are encoded with gradient."""
        return self.nodes[: self.num_targets]

    @property
    def neighbors(self) -> Tensor:
        """The nodes that are not."""
        return self.nodes[self.num_targets :]

    @cached_property
    def graph(self) -> Graph:
        """The edges as ops take them."""
        return Graph.from_edge_index(self.edge_index, self.nodes.numel())

    def to(self, device: torch.device) -> Block:
        """The block on another device."""
        return Block(
            self.nodes.to(device),
            self.num_targets,
            self.num_labelled,
            self.edge_index.to(device),
            self.weight.to(device),
        )


class Blocks:
    """The graph, and its blocks.

    An edge's weight is that of the whole graph, D^-1/2 (A + I) D^-1/2, in every block.

    Args:
        edge_index: int64 [2, E]; every edge in both directions, no self loops.
        num_nodes: N.
        fanout: neighbours sampled of each node; 0: all.
        hops: how often.
        unlabelled: how many neighbours become targets.
        seed: of the sampling.
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        *,
        fanout: int,
        hops: int,
        unlabelled: int = 0,
        seed: int = 0,
    ) -> None:
        self.num_nodes = num_nodes
        self.fanout = fanout
        self.hops = hops
        self.unlabelled = unlabelled
        self.seed = seed
        self.graph = Graph.from_edge_index(edge_index, num_nodes)
        self.edges = edge_index
        self.looped, self.weight = gcn_norm(edge_index, num_nodes=num_nodes)
        self._sampled: tuple[int, tuple[ops.Neighbors, ...]] | None = None

    def whole(self) -> Block:
        """The whole graph, every node a target."""
        nodes = torch.arange(self.num_nodes)
        return Block(nodes, self.num_nodes, self.num_nodes, self.looped, self.weight)

    def block(self, labelled: Tensor, epoch: int) -> Block:
        """The block around some nodes, int64 [b]; neighbours are drawn anew for every epoch."""
        nodes = self._with_neighbors(labelled, epoch)
        targets = labelled.numel() + min(self.unlabelled, nodes.numel() - labelled.numel())
        return self._among(nodes, targets, labelled.numel())

    def neighbors(self, labelled: Tensor, epoch: int) -> Tensor:
        """The neighbours of the block around some nodes, without the block."""
        return self._with_neighbors(labelled, epoch)[labelled.numel() + self.unlabelled :]

    def around(self, labelled: Tensor, others: Tensor) -> Block:
        """The block of some nodes, int64 [b], and all of some others that are not among them."""
        apart = others[~torch.isin(others, labelled)]
        return self._among(torch.cat((labelled, apart)), labelled.numel(), labelled.numel())

    def _among(self, nodes: Tensor, targets: int, labelled: int) -> Block:
        edges, weight = subgraph(
            nodes, self.looped, self.weight, relabel_nodes=True, num_nodes=self.num_nodes
        )
        return Block(nodes, targets, labelled, edges, weight)

    def _with_neighbors(self, nodes: Tensor, epoch: int) -> Tensor:
        if self.fanout:
            return ops.layer_batches(nodes, self._neighbors(epoch))[0].nodes
        for _ in range(self.hops):
            inside = torch.zeros(self.num_nodes, dtype=torch.bool)
            inside[nodes] = True
            source, destination = self.edges
            reached = source[inside[destination]].unique()
            nodes = torch.cat((nodes, reached[~inside[reached]]))
        return nodes

    def _neighbors(self, epoch: int) -> tuple[ops.Neighbors, ...]:
        if self._sampled is None or self._sampled[0] != epoch:
            drawn = ops.sample_neighbors(
                self.graph,
                k=[self.fanout] * self.hops,
                seed=self.seed,
                epoch=epoch,
                method="uniform",
                fill="pad",
            )
            self._sampled = (epoch, drawn)
        return self._sampled[1]
