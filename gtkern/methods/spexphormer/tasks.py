"""The two phases of Spexphormer as Lightning tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtkern import ops
from gtkern.data.node import NodeData
from gtkern.graph import Graph
from gtkern.methods.spexphormer.settings import Settings, temperature_at
from gtkern.models.exphormer import EDGE_TYPES, SampledExphormer, ScoreEstimator
from gtkern.training.node import NodeTask

__all__ = ["SampledTask", "ScoreTask"]


class ScoreTask(NodeTask):
    """Phase 1: the narrow network on all edges.

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
            attend=attend,
        )
        nodes = data.x.size(0)
        super().__init__(
            network, data, phase, metric=settings.metric, batch_size=nodes, seed=settings.seed
        )
        self.settings = phase
        self.graph = graph

    def setup(self, stage: str) -> None:
        """Move the graph to the network's device."""
        self.graph = self.graph.to(self.trainer.strategy.root_device)

    def logits(self, nodes: Tensor) -> Tensor:
        """The network's output for `nodes`, at the epoch's temperature."""
        temperature = temperature_at(self.settings, self.current_epoch)
        out: Tensor = self.network(self.x, self.graph, temperature)
        return out[nodes]

    def report(self) -> dict[str, float]:
        """The temperature."""
        return {"temperature": temperature_at(self.settings, self.current_epoch)}

    def best_scores(self) -> Iterator[np.ndarray]:
        """The scores float32 [E] of each layer, by the best weights at their temperature."""
        assert self.best is not None
        network = self.network
        assert isinstance(network, ScoreEstimator)
        network.load_state_dict(self.best.weights)
        network.eval()
        graph = self.graph.to(self.x.device)
        with torch.inference_mode():
            scores = network.scores(self.x, graph, temperature_at(self.settings, self.best.epoch))
        for score in scores:
            yield score.cpu().numpy()


class SampledTask(NodeTask):
    """Phase 2: the wide network on sampled edges.

    Args:
        settings: of the run.
        data: the graph with its labels.
        graph: the augmented graph.
        scores: float32 [L, E] on the CPU, in the order of the graph's edges.
        attend: stands in for sampled_attention.
    """

    def __init__(
        self,
        settings: Settings,
        data: NodeData,
        graph: Graph,
        scores: Tensor,
        *,
        attend: Callable[..., Any] = ops.sampled_attention,
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
        )
        self.settings = phase
        self.seed = settings.seed
        self.graph = graph.to("cpu")
        self.weight = self._weight(scores)
        self.sampled_in: int | None = None
        self.neighbors: Sequence[Any] = ()

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
            self.neighbors = ops.sample_neighbors(
                self.graph,
                self.weight,
                list(self.settings.neighbors),
                seed=self.seed,
                epoch=epoch,
                method=self.settings.sampling,
            )
            self.sampled_in = epoch

    def logits(self, nodes: Tensor) -> Tensor:
        """The network's output for `nodes`, over the nodes that their sampled edges reach."""
        device = self.x.device
        layers = [
            ops.LayerBatch(*(tensor.to(device) for tensor in layer if tensor is not None))
            for layer in ops.layer_batches(nodes.cpu(), self.neighbors)
        ]
        out: Tensor = self.network(self.x[layers[0].nodes], layers)
        return out

    def kept(self) -> np.ndarray:
        """int64 [L, T]: different edges in the current sample, by layer and type."""
        counts = []
        for layer in self.neighbors:
            chosen = torch.zeros(self.graph.num_edges, dtype=torch.bool)
            chosen[layer.edge[layer.index >= 0]] = True
            types = self.graph.csr.edge_type[chosen].long()
            counts.append(torch.bincount(types, minlength=len(EDGE_TYPES)))
        return torch.stack(counts).numpy()
