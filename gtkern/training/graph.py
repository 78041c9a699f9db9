"""The Lightning task of every model that predicts something of whole graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gtkern.data.graphs import GraphDataset
from gtkern.training import metrics
from gtkern.training.graph_settings import GraphTraining
from gtkern.training.task import Task

__all__ = ["GraphTask"]


class GraphTask(Task):
    """Training and evaluation of a network on batches of graphs.

    Classes are learned with the cross-entropy, 0/1 tasks with that of each task where its label is
    known, numbers with squared or absolute errors. Numbers are predicted in units of the training
    labels' standard deviation, and evaluated in their own. The metric of a data set of OGB is that
    of its Evaluator. A last batch of a single graph is left out of an epoch's training.

    Args:
        network: maps a batch, as PackedGraphs gives it, to [G, classes] or [G, tasks].
        data: the graphs, with what the network needs of them.
        splits: indices of training, validation and test graphs.
        training: see GraphTraining.
        seed: of the batches.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        network: nn.Module,
        data: GraphDataset,
        splits: tuple[Tensor, Tensor, Tensor],
        training: GraphTraining,
        *,
        seed: int,
    ) -> None:
        super().__init__(network, training, metric=data.metric)
        self.data = data
        self._train_graphs, val, test = splits
        # the same graphs are evaluated once
        self._eval_graphs = val if test is val else torch.cat((val, test))
        self._parts = slice(val.numel()), slice(0 if test is val else val.numel(), None)
        self._batch_size = training.batch_size
        self._seed = seed
        self._evaluated: list[Tensor] = []
        self._official = None if data.ogb is None else metrics.ogb_metric(data.ogb)
        self.loss = training.loss if data.task == "regression" else "auto"
        # plain numbers would not move to the network's device
        mean, deviation = _scale(data.graphs.y[self._train_graphs], data.task)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def train_dataloader(self) -> Any:
        """Training graphs, shuffled anew every epoch."""
        # the BatchNorm of a single graph may be that of a single node, which is not defined
        rest = self._train_graphs.numel() % self._batch_size
        return self.data.graphs.loader(
            self._train_graphs,
            batch_size=self._batch_size,
            shuffle=True,
            seed=self._seed,
            drop_last=rest == 1 and self._train_graphs.numel() > 1,
        )

    def val_dataloader(self) -> Any:
        """Validation graphs, then test graphs."""
        return self.data.graphs.loader(self._eval_graphs, batch_size=self._batch_size)

    def training_step(self, batch: Any, _: int) -> Tensor:
        """The mean loss over the labels of a batch."""
        truth = batch.y
        if self.data.task == "regression":
            truth = (truth - self.mean) / self.deviation
        loss = metrics.loss(self.network(batch), truth, kind=self.loss)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        """Keep the outputs until all graphs have one."""
        self._evaluated.append(self.network(batch))

    def on_validation_epoch_end(self) -> None:
        """Both metrics."""
        outputs = torch.cat(self._evaluated).float()
        self._evaluated = []
        if self.data.task == "regression":
            outputs = outputs * self.deviation + self.mean
        truth = self.data.graphs.y[self._eval_graphs].to(outputs.device)
        val, test = (self._measure(outputs[part], truth[part]) for part in self._parts)
        self.evaluated(val, test)

    def _measure(self, outputs: Tensor, truth: Tensor) -> float:
        if self._official is not None:
            return self._official(outputs, truth)
        return metrics.evaluate(self.metric, outputs, truth)


def _scale(y: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [tasks] of the known numbers; 0 and 1 of anything else."""
    if task != "regression":
        return torch.zeros(1), torch.ones(1)
    told = ~y.isnan()
    count = told.sum(0).clamp(min=1)
    mean = y.nan_to_num().sum(0) / count
    squares = ((y - mean) ** 2).nan_to_num().sum(0) / count
    deviation = squares.sqrt()
    return mean, torch.where(deviation > 0, deviation, 1.0)
