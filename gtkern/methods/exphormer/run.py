"""A run of Exphormer, from data to summary."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch_geometric.nn import GCNConv

from gtkern import _processes, ops
from gtkern.data.node import NodeData
from gtkern.graph import Graph
from gtkern.methods.exphormer.settings import Settings
from gtkern.models.exphormer import (
    EDGE_TYPES,
    VIRTUAL_EDGE_TYPES,
    Exphormer,
    augment,
    with_virtual_nodes,
)
from gtkern.training import memory, plots
from gtkern.training.batches import Batch
from gtkern.training.errors import UserError
from gtkern.training.node import NodeTask
from gtkern.training.node_run import NodeRun
from gtkern.training.run import RunFolder, Summary

__all__ = ["ExphormerRun", "ExphormerTask", "build_graph"]

NAME = "exphormer"
PHASE = "training"


def build_graph(settings: Settings, data: NodeData) -> Graph:
    """What attention sees: the graph's edges, expander, self loops, virtual nodes."""
    training = settings.training
    graph = augment(
        data.edge_index if training.graph_edges else data.edge_index[:, :0],
        data.x.size(0),
        expander_degree=settings.expander.degree,
        algorithm=settings.expander.algorithm,
        seed=settings.seed,
    )
    return with_virtual_nodes(graph, training.virtual_nodes) if training.virtual_nodes else graph


class ExphormerTask(NodeTask):
    """Exphormer on all edges, all training nodes in a step.

    Args:
        settings: of the run.
        data: the graph with its labels.
        graph: what attention sees.
        backend: of the attention.
    """

    def __init__(
        self, settings: Settings, data: NodeData, graph: Graph, *, backend: str = "auto"
    ) -> None:
        training = settings.training
        local = None
        if training.local == "gcn":
            # the graph never changes, nor does its normalisation
            local = functools.partial(_convolution, cached=True)
        network = Exphormer(
            data.x.size(1),
            data.num_classes,
            width=training.width,
            heads=training.heads,
            layers=training.layers,
            norm=training.norm,
            dropout=training.dropout,
            pre_layers=training.pre_layers,
            post_layers=training.post_layers,
            num_edge_types=len(EDGE_TYPES)
            + (len(VIRTUAL_EDGE_TYPES) if training.virtual_nodes else 0),
            virtual_nodes=training.virtual_nodes,
            local=local,
            attend=functools.partial(ops.sparse_attention, backend=backend),
        )
        super().__init__(
            network,
            data,
            training,
            metric=settings.metric,
            batch_size=data.x.size(0),
            seed=settings.seed,
        )
        self.graph = graph
        self.edges = data.edge_index.to(torch.int64) if local is not None else None

    def to_device(self, device: torch.device) -> None:
        """Move the features, the graph and its edges."""
        super().to_device(device)
        self.graph = self.graph.to(device)
        self.edges = None if self.edges is None else self.edges.to(device)

    def logits(self, batch: Batch) -> Tensor:
        """The network's output for the targets."""
        out: Tensor = self.network(self.x, self.graph, self.edges)
        return out[batch.targets]


class ExphormerRun(NodeRun):
    """A run of the method, from data to summary.

    Deviations from the paper: as Exphormer's; self loops always; every training node in each step.

    Args:
        settings: what to run.
        data, folder, device, backend, command, console: see NodeRun.
        dataset: name of the data; default: the settings'.

    Raises:
        UserError: several processes run. TypeError, ValueError: `data` does not fit.
        NotImplementedError: the backend cannot run.
    """

    def __init__(
        self,
        settings: Settings,
        data: Any,
        folder: RunFolder,
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        dataset: str | None = None,
        command: str = "",
        console: Console | None = None,
    ) -> None:
        if _processes.count() > 1:
            raise UserError("exphormer trains in one process")
        super().__init__(
            data,
            folder,
            method=NAME,
            dataset=dataset or settings.dataset,
            seed=settings.seed,
            metric=settings.metric,
            device=device,
            backend=backend,
            command=command,
            console=console,
        )
        self.settings = settings
        q = torch.zeros(1, 1, 1, device=self.device)
        none = torch.zeros(2, 0, dtype=torch.int64, device=self.device)
        ops.sparse_attention(q, q, q, Graph.from_edge_index(none, 1), backend=backend)

    def run(self, *, resume: bool = False) -> Summary:
        """Train and write everything.

        Args:
            resume: go on from the checkpoint in the folder.

        Raises:
            InterruptedRunError: the user stopped; `resume` goes on. UserError: training diverged.
        """
        if not resume:
            self.clean()
        phase = self.finished(PHASE, self.folder) if resume else None
        if phase is None:
            memory.reset_peak(self.device)
            before = memory.resident_bytes(self.device)
            began = time.perf_counter()
            torch.manual_seed(self.settings.seed)
            graph = build_graph(self.settings, self.data)
            task = ExphormerTask(self.settings, self.data, graph, backend=self.backend)
            earlier = self.fit(PHASE, task, resume)
            details = {"attention_edges": graph.num_edges, "resident_bytes_before": before}
            phase = self.finish(PHASE, task, earlier + time.perf_counter() - began, details)
        with self.folder.replacing("plots/curves.png") as part:
            plots.curves(part, self.rows, self.best, self.metric)
        return self.summarize([phase])


def _convolution(width: int, *, cached: bool) -> GCNConv:
    return GCNConv(width, width, cached=cached)
