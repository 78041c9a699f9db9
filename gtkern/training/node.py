"""The Lightning task of every method that classifies the nodes of one graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gtkern import _processes
from gtkern.data.node import NodeData
from gtkern.nn import synchronize_norms
from gtkern.training import metrics
from gtkern.training.batches import Batch, NodeBatches
from gtkern.training.optimization import Optimization
from gtkern.training.task import Task

__all__ = ["NodeTask", "aligned"]


def aligned(x: Tensor) -> Tensor:
    """`x`, copied unless it begins on a cache line, as torch's own tensors do.

    The last bits of torch's products depend on where their operands begin. NumPy's arrays, and the
    tensors over them, begin elsewhere in every process, and a run would not repeat.
    """
    return x if x.data_ptr() % 64 == 0 else x.clone()


class NodeTask(Task):
    """Training and evaluation of a network on the nodes of one graph.

    A method says in `logits` how the network is called, and in `prepare` what can be made ready
    before.

    Several processes share every batch out among them. Their losses are weighted so that the
    gradient is that of the whole batch, however unequal the shares; statistics of BatchNorm and
    GraphNorm are those of all shares together; every process has all logits for the metrics.

    Args:
        network: the module to train.
        data: the graph with its labels.
        optimization: see Optimization.
        metric: one of gtkern.training.metrics.METRICS.
        batch_size: training nodes in a step, evaluated nodes in a pass; of all processes together.
        seed: of the batches.
        ahead: batches prepared in a thread while others train.
    """

    def __init__(
        self,
        network: nn.Module,
        data: NodeData,
        optimization: Optimization,
        *,
        metric: str,
        batch_size: int,
        seed: int,
        ahead: int = 0,
    ) -> None:
        super().__init__(network, optimization, metric=metric)
        # no buffers: they may be files larger than memory, which nobody should copy or send
        self.x = aligned(data.x)
        self.y = data.y
        self._labels = data.y
        self._train_nodes = data.train_mask.nonzero().flatten()
        val, test = (mask.nonzero().flatten() for mask in (data.val_mask, data.test_mask))
        self._num_val = val.numel()
        self._eval_nodes = torch.cat((val, test))
        self._batch_size = batch_size
        self._seed = seed
        self._ahead = ahead
        self._evaluated: list[tuple[Tensor, Tensor]] = []

    def share(self, nodes: Tensor) -> Tensor:
        """This process's part of the nodes of a batch."""
        return nodes.tensor_split(_processes.count())[_processes.rank()]

    def prepare(self, targets: Tensor) -> Any:
        """What `logits` needs of a batch besides its targets; on the CPU, maybe in a thread."""
        return None

    def logits(self, batch: Batch) -> Tensor:
        """The network's output [M, classes] for the batch's targets [M]."""
        raise NotImplementedError

    def batch(self, nodes: Tensor) -> Batch:
        """This process's part of a batch, prepared."""
        targets = self.share(nodes)
        return Batch(targets, metrics.known(self._labels[nodes]), self.prepare(targets))

    def setup(self, stage: str) -> None:
        """Move the data to the network's device; draw other numbers in every process."""
        self.to_device(self.trainer.strategy.root_device)
        if _processes.count() > 1:
            synchronize_norms(self.network)
            torch.manual_seed(self._seed * 1_000_003 + _processes.rank())

    def to_device(self, device: torch.device) -> None:
        """Move what the steps read."""
        self.x = self.x.to(device)
        self.y = self.y.to(device)

    def train_dataloader(self) -> NodeBatches:
        """Training nodes."""
        return NodeBatches(
            self._train_nodes,
            self._batch_size,
            self.batch,
            seed=self._seed,
            epoch=lambda: self.current_epoch,
            ahead=self._ahead,
        )

    def val_dataloader(self) -> NodeBatches:
        """Validation nodes, then test nodes."""
        return NodeBatches(self._eval_nodes, self._batch_size, self.batch, ahead=self._ahead)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """This process's part of the loss of a batch of training nodes."""
        loss = metrics.loss(self.logits(batch), self.y[batch.targets], batch.known)
        self.losses.append(loss.detach())
        # the processes' gradients are averaged, and it is their sum that is wanted
        return loss * _processes.count()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Keep the outputs until all nodes have one."""
        self._evaluated.append((batch.targets, self.logits(batch)))

    def on_validation_epoch_end(self) -> None:
        """Both metrics; keep the weights when validation is better than ever."""
        nodes, logits = (
            _processes.gather_rows(torch.cat(parts)) for parts in zip(*self._evaluated, strict=True)
        )
        self._evaluated = []
        if _processes.count() > 1:
            order = nodes.argsort()
            wanted = self._eval_nodes.to(nodes.device)
            logits = logits[order[torch.searchsorted(nodes[order], wanted)]]
        truth = self.y[self._eval_nodes.to(self.y.device)]
        split = self._num_val
        val = metrics.evaluate(self.metric, logits[:split], truth[:split])
        test = metrics.evaluate(self.metric, logits[split:], truth[split:])
        self.evaluated(val, test)
