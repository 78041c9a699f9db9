"""The two phases of Spexphormer as Lightning tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtkern import _processes, ops
from gtkern.data.node import NodeData
from gtkern.graph import Graph
from gtkern.methods.spexphormer.settings import Settings, temperature_at
from gtkern.models.exphormer import EDGE_TYPES, SampledExphormer, ScoreEstimator
from gtkern.training.batches import Batch, NodeBatches
from gtkern.training.node import NodeTask

__all__ = ["SampledTask", "ScoreTask", "own_rows"]

ROWS_AT_ONCE = 1 << 16
"""Nodes at a time in the evaluation by layers."""


def own_rows(graph: Graph) -> slice:
    """The nodes whose edges this process computes: about as many edges for each process."""
    ptr = graph.csr.ptr
    count, rank = _processes.count(), _processes.rank()
    wanted = torch.tensor([graph.num_edges * part // count for part in range(1, count)])
    middle = torch.searchsorted(ptr, wanted.to(ptr.device)).tolist()
    ends = [0, *middle, graph.num_dst_nodes]
    return slice(ends[rank], ends[rank + 1])


def among(nodes: Tensor, rows: slice) -> Tensor:
    """The nodes that lie in `rows`, in their order."""
    return nodes[(nodes >= rows.start) & (nodes < rows.stop)]


class ScoreTask(NodeTask):
    """Phase 1: the narrow network on all edges.

    Every process computes the rows of its own nodes; keys and values are gathered in each layer.

    Args:
        settings: of the run.
        data: the graph with its labels.
        graph: the augmented graph.
        attend: stands in for sparse_attention.
    """

    def __init__(
        self,
        settings: Settings,
        data: NodeData,
        graph: Graph,
        *,
        attend: Callable[..., Any] = ops.sparse_attention,
    ) -> None:
        phase = settings.phase1
        network = ScoreEstimator(
            data.x.size(1),
            data.num_classes,
            width=phase.width,
            layers=phase.layers,
            norm=phase.norm,
            pre_layers=phase.pre_layers,
            post_layers=phase.post_layers,
            graph_bias=phase.graph_bias,
            normalize_values=phase.normalize_values,
            attend=attend,
        )
        nodes = data.x.size(0)
        super().__init__(
            network, data, phase, metric=settings.metric, batch_size=nodes, seed=settings.seed
        )
        self.settings = phase
        self.rows = own_rows(graph)
        self.x = self.x[self.rows]
        csr = graph.csr
        first, last = int(csr.ptr[self.rows.start]), int(csr.ptr[self.rows.stop])
        self.graph = Graph.from_csr(
            csr.ptr[self.rows.start : self.rows.stop + 1] - first,
            csr.index[first:last],
            nodes,
            edge_type=csr.edge_type[first:last],
        )

    def to_device(self, device: torch.device) -> None:
        """Move the features and the graph."""
        super().to_device(device)
        self.graph = self.graph.to(device)

    def share(self, nodes: Tensor) -> Tensor:
        """The nodes among this process's rows."""
        return among(nodes, self.rows)

    def logits(self, batch: Batch) -> Tensor:
        """The network's output for the targets, at the epoch's temperature."""
        temperature = temperature_at(self.settings, self.current_epoch)
        out: Tensor = self.network(self.x, self.graph, temperature)
        return out[batch.targets - self.rows.start]

    def report(self) -> dict[str, float]:
        """The temperature."""
        return {"temperature": temperature_at(self.settings, self.current_epoch)}

    @torch.no_grad()
    def best_scores(self) -> Iterator[np.ndarray]:
        """The scores by the best weights at their temperature, layer by layer, float32.

        The first process is given every piece of a layer, its own and then the others', in the
        order of the graph's edges; the others give theirs away and yield nothing.
        """
        assert self.best is not None
        network = self.network
        assert isinstance(network, ScoreEstimator)
        network.load_state_dict(self.best.weights)
        network.eval()
        temperature = temperature_at(self.settings, self.best.epoch)
        for score in network.scores(self.x, self.graph, temperature):
            for piece in _processes.rows_at_first(score):
                yield piece.cpu().numpy()


class SampledTask(NodeTask):
    """Phase 2: the wide network on sampled edges.

    Args:
        settings: of the run.
        data: the graph with its labels.
        graph: the augmented graph.
        scores: float32 [L, E] on the CPU, in the order of the graph's edges.
        attend: stands in for sampled_attention.
        sample: stands in for sample_neighbors, with the scores as weights.
    """

    def __init__(
        self,
        settings: Settings,
        data: NodeData,
        graph: Graph,
        scores: Tensor,
        *,
        attend: Callable[..., Any] = ops.sampled_attention,
        sample: Callable[..., Sequence[ops.Neighbors]] | None = None,
    ) -> None:
        phase = settings.phase2
        network = SampledExphormer(
            data.x.size(1),
            data.num_classes,
            width=phase.width,
            heads=phase.heads,
            layers=phase.layers,
            norm=phase.norm,
            dropout=phase.dropout,
            pre_layers=phase.pre_layers,
            post_layers=phase.post_layers,
            attend=attend,
        )
        super().__init__(
            network,
            data,
            phase,
            metric=settings.metric,
            batch_size=phase.batch_size,
            seed=settings.seed,
            ahead=phase.prepared_ahead,
        )
        self.settings = phase
        self.seed = settings.seed
        self.graph = graph.to("cpu")
        self.weight = self._weight(scores) if sample is None else scores
        self.draw = sample or ops.sample_neighbors
        self.rows = own_rows(self.graph)
        self.sampled_in: int | None = None
        self.neighbors: Sequence[ops.Neighbors] = ()

    def _weight(self, scores: Tensor) -> ops.SamplingTable | Tensor | None:
        """What edges are sampled by; the scores themselves where their table would be too large."""
        if self.settings.sampling == "uniform":
            return None
        table_bytes = 8 * scores.numel()
        if self.settings.sampling == "top" or (
            table_bytes > self.settings.sampling_table_gib * 2**30
        ):
            return scores
        return ops.sampling_table(self.graph, scores)

    def on_train_epoch_start(self) -> None:
        """Sample the edges of the epoch; training and evaluation share them."""
        super().on_train_epoch_start()
        self.sample(self.current_epoch)

    def sample(self, epoch: int) -> None:
        """Draw the edges that `epoch` uses, unless they are the current ones."""
        epoch -= epoch % self.settings.resample_every
        if epoch != self.sampled_in:
            # the old sample first: there is room for one
            self.neighbors = ()
            self.neighbors = self.draw(
                self.graph,
                self.weight,
                list(self.settings.neighbors),
                seed=self.seed,
                epoch=epoch,
                method=self.settings.sampling,
            )
            self.sampled_in = epoch

    def val_dataloader(self) -> NodeBatches:
        """Validation nodes, then test nodes; all at once for the evaluation by layers."""
        if self.settings.evaluation == "batches":
            return super().val_dataloader()
        return NodeBatches(self._eval_nodes, self._eval_nodes.numel(), self.own_batch)

    def own_batch(self, nodes: Tensor) -> Batch:
        """The nodes among this process's rows, for the evaluation by layers."""
        own = among(nodes, self.rows)
        return Batch(own, nodes.numel(), None)

    def prepare(self, targets: Tensor) -> tuple[Tensor | None, tuple[ops.LayerBatch, ...]]:
        """The nodes that the targets' sampled edges reach, and on a CPU their features."""
        layers = ops.layer_batches(targets, self.neighbors)
        if self.x.device.type != "cpu":
            return None, layers
        nodes = layers[0].nodes
        rows = self.x.new_empty(nodes.numel(), self.x.size(1))
        # NumPy's gather takes one thread, and leaves the others to the training; "clip", for its
        # checks of every index need a copy of the result
        np.take(self.x.numpy(), nodes.numpy(), axis=0, out=rows.numpy(), mode="clip")
        return rows, layers

    def logits(self, batch: Batch) -> Tensor:
        """The network's output for the targets, over the nodes that their sampled edges reach."""
        if batch.inputs is None:
            return self._logits_by_layers(batch.targets)
        features, layers = batch.inputs
        if features is None:
            features = self.x[layers[0].nodes]
        out: Tensor = self.network(features, layers)
        return out

    def _logits_by_layers(self, targets: Tensor) -> Tensor:
        network = self.network
        assert isinstance(network, SampledExphormer)
        device = self.x.device
        neighbors = [
            ops.Neighbors(
                layer.index.to(device),
                layer.edge,
                None if layer.type is None else layer.type.to(device),
            )
            for layer in self.neighbors
        ]
        out = network.everywhere(self.x, neighbors, self.rows, ROWS_AT_ONCE)
        return out[targets - self.rows.start]

    def kept(self) -> np.ndarray:
        """int64 [L, T]: different edges in the current sample, by layer and type."""
        counts = []
        for layer in self.neighbors:
            chosen = torch.zeros(self.graph.num_edges, dtype=torch.bool)
            chosen[layer.edge[layer.index >= 0]] = True
            counts.append(
                torch.bincount(self.graph.csr.edge_type[chosen], minlength=len(EDGE_TYPES))
            )
        return torch.stack(counts).numpy()
