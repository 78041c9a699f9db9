"""The Lightning task of every method that classifies the nodes of one graph."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from gtkern.data.node import NodeData
from gtkern.training import metrics
from gtkern.training.errors import UserError
from gtkern.training.optimization import Optimization, cosine_with_warmup

__all__ = ["Best", "NodeBatches", "NodeTask"]


@dataclass
class Best:
    """The best evaluation so far: epoch from 0, metric of both splits, the network's weights."""

    epoch: int
    val: float
    test: float
    weights: dict[str, Tensor]


class NodeBatches:
    """Nodes in batches, shuffled anew every epoch when `epoch` is given.

    Args:
        nodes: int64 [M].
        batch_size: nodes in a batch; at least M: one batch in the given order.
        seed: of the shuffling.
        epoch: tells the current epoch.
    """

    def __init__(
        self,
        nodes: Tensor,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
    ) -> None:
        self.nodes = nodes
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.nodes.numel() // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        nodes = self.nodes
        if self.epoch is not None and len(self) > 1:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
            nodes = nodes[torch.randperm(nodes.numel(), generator=generator)]
        return iter(nodes.split(self.batch_size))


class NodeTask(lightning.LightningModule):
    """Training and evaluation of a network on the nodes of one graph.

    A method says in `logits` how the network is called. One pass over validation and test nodes
    gives both metrics; the weights of the best validation metric are kept in memory.

    Args:
        network: the module to train.
        data: the graph with its labels.
        optimization: see Optimization.
        metric: one of gtkern.training.metrics.METRICS.
        batch_size: training nodes in a step, evaluated nodes in a pass.
        seed: of the batches.
    """

    x: Tensor
    y: Tensor

    def __init__(
        self,
        network: nn.Module,
        data: NodeData,
        optimization: Optimization,
        *,
        metric: str,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimization = optimization
        self.metric = metric
        self.register_buffer("x", data.x, persistent=False)
        self.register_buffer("y", data.y, persistent=False)
        self._train_nodes = data.train_mask.nonzero().flatten()
        val, test = (mask.nonzero().flatten() for mask in (data.val_mask, data.test_mask))
        self._num_val = val.numel()
        self._eval_nodes = torch.cat((val, test))
        self._batch_size = batch_size
        self._seed = seed
        self.history: list[dict[str, float]] = []
        self.best: Best | None = None
        self._loss: Tensor | None = None
        self._evaluated: list[Tensor] = []
        self._last: dict[str, float] = {}
        self._started = time.perf_counter()

    def logits(self, nodes: Tensor) -> Tensor:
        """The network's output [M, classes] for `nodes` [M]."""
        raise NotImplementedError

    def report(self) -> dict[str, float]:
        """What a method adds to the row of an epoch."""
        return {}

    def train_dataloader(self) -> NodeBatches:
        """Training nodes."""
        return NodeBatches(
            self._train_nodes, self._batch_size, seed=self._seed, epoch=lambda: self.current_epoch
        )

    def val_dataloader(self) -> NodeBatches:
        """Validation nodes, then test nodes."""
        return NodeBatches(self._eval_nodes, self._batch_size)

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule, stepped once an epoch."""
        settings = self.optimization
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda epoch: cosine_with_warmup(epoch, settings.warmup_epochs, settings.epochs),
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock."""
        self._started = time.perf_counter()
        self._rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, nodes: Tensor, _: int) -> Tensor:
        """The loss of a batch of training nodes."""
        loss = metrics.loss(self.logits(nodes), self.y[nodes])
        self._loss = loss.detach()
        return loss

    def validation_step(self, nodes: Tensor, _: int) -> None:
        """Keep the outputs until all nodes have one."""
        self._evaluated.append(self.logits(nodes))

    def on_validation_epoch_end(self) -> None:
        """Both metrics; keep the weights when validation is better than ever."""
        logits = torch.cat(self._evaluated)
        self._evaluated = []
        truth = self.y[self._eval_nodes.to(self.y.device)]
        split = self._num_val
        val = metrics.evaluate(self.metric, logits[:split], truth[:split])
        test = metrics.evaluate(self.metric, logits[split:], truth[split:])
        self._last = {"val": val, "test": test}
        if self.best is None or val > self.best.val:
            weights = {key: value.clone() for key, value in self.network.state_dict().items()}
            self.best = Best(self.current_epoch, val, test, weights)

    def on_train_epoch_end(self) -> None:
        """Write the epoch's row.

        Raises:
            UserError: the loss is no finite number.
        """
        assert self._loss is not None
        loss = float(self._loss)
        if not math.isfinite(loss):
            raise UserError(
                f"training diverged: the loss is {loss} in epoch {self.current_epoch + 1}; "
                "a lower lr or clip_grad_norm may help"
            )
        self.history.append(
            {
                "epoch": self.current_epoch,
                "loss": loss,
                "lr": self._rate,
                **self._last,
                **self.report(),
                "seconds": time.perf_counter() - self._started,
            }
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not keep: rows, best weights, the random state."""
        best = None if self.best is None else vars(self.best)
        checkpoint["gtkern"] = {
            "history": self.history,
            "best": best,
            "rng_state": torch.get_rng_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` added."""
        kept = checkpoint["gtkern"]
        self.history = list(kept["history"])
        self.best = None if kept["best"] is None else Best(**kept["best"])
        torch.set_rng_state(kept["rng_state"])
