"""A run of a model on whole graphs, from data to summary."""

from __future__ import annotations

import functools
import time

import torch
from rich.console import Console
from torch import Tensor

from gtkern import _processes, ops
from gtkern.data.graphs import GraphDataset
from gtkern.ragged import Ragged
from gtkern.training import memory, plots
from gtkern.training.errors import UserError
from gtkern.training.graph import GraphTask
from gtkern.training.graph_settings import MODELS, GraphSettings
from gtkern.training.phase_run import PhaseRun
from gtkern.training.run import RunFolder, Summary

__all__ = ["GraphRun", "build_network", "splits"]

PHASE = "training"


def splits(settings: GraphSettings, data: GraphDataset) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of training, validation and test graphs.

    Raises:
        ValueError: there are not enough graphs for the folds, or the set has no such split.
    """
    if settings.folds:
        train, val, test = data.folds(settings.folds, settings.seed)[settings.fold]
    else:
        kind = None if settings.split == "default" else settings.split
        train, val, test = data.split(settings.seed, kind)
    return train, val, test


def build_network(
    settings: GraphSettings, data: GraphDataset, backend: str = "auto"
) -> torch.nn.Module:
    """The model, for the features of the data and what it is to predict.

    What it needs beside the graphs is added to the data, unless it is there.
    """
    model = MODELS[settings.model][0]
    graphs = data.graphs
    model.encode(graphs, settings.network)
    network: torch.nn.Module = model(
        graphs.node_categories or graphs.num_features,
        data.num_outputs,
        settings.network,
        edge_features=graphs.edge_categories or graphs.num_edge_features or None,
        attend=functools.partial(ops.ragged_attention, backend=backend),
    )
    return network


class GraphRun(PhaseRun):
    """A run of a model on whole graphs.

    Args:
        settings: what to run.
        data: the graphs.
        folder, device, backend, command, console: see PhaseRun.
        dataset: name of the data; default: the data's.

    Raises:
        UserError: several processes run. ValueError: the split does not fit the data.
        NotImplementedError: the backend cannot run.
    """

    def __init__(
        self,
        settings: GraphSettings,
        data: GraphDataset,
        folder: RunFolder,
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        dataset: str | None = None,
        command: str = "",
        console: Console | None = None,
    ) -> None:
        if _processes.count() > 1:
            raise UserError(f"{settings.model} trains in one process")
        super().__init__(
            folder,
            method=settings.model,
            dataset=dataset or data.name,
            seed=settings.seed,
            metric=data.metric,
            device=device,
            backend=backend,
            command=command,
            console=console,
        )
        self.settings = settings
        self.data = data
        self.splits = splits(settings, data)
        # what cannot run should not start
        q = torch.zeros(1, 1, 1, device=self.device)
        one = Ragged.from_ptr(torch.tensor([0, 1], device=self.device))
        ops.ragged_attention(q, q, q, one, backend=backend)

    def run(self, *, resume: bool = False) -> Summary:
        """Train and write everything.

        Args:
            resume: go on from the checkpoint in the folder.

        Raises:
            InterruptedRunError: the user stopped; `resume` goes on. UserError: training diverged,
            or the model cannot be made for the data.
        """
        if not resume:
            self.clean()
        phase = self.finished(PHASE, self.folder) if resume else None
        if phase is None:
            memory.reset_peak(self.device)
            before = memory.resident_bytes(self.device)
            began = time.perf_counter()
            torch.manual_seed(self.settings.seed)
            try:
                network = build_network(self.settings, self.data, self.backend)
            except (TypeError, ValueError) as error:
                raise UserError(f"{self.settings.model} on {self.dataset}: {error}") from error
            prepared = time.perf_counter() - began
            task = GraphTask(
                network, self.data, self.splits, self.settings.training, seed=self.settings.seed
            )
            earlier = self.fit(PHASE, task, resume)
            train, val, test = (part.numel() for part in self.splits)
            details = {
                "graphs": {"train": train, "val": val, "test": test},
                "prepare_seconds": prepared,
                "resident_bytes_before": before,
            }
            if self.data.task == "regression":
                # predictions are in these units
                details |= {"mean": task.mean.tolist(), "deviation": task.deviation.tolist()}
            phase = self.finish(PHASE, task, earlier + time.perf_counter() - began, details)
        with self.folder.replacing("plots/curves.png") as part:
            plots.curves(part, self.rows, self.best, self.metric)
        return self.summarize([phase])
