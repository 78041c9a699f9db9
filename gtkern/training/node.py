"""The Lightning task of every method that classifies the nodes of one graph."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from gtkern import _processes
from gtkern.data.node import NodeData
from gtkern.nn import synchronize_norms
from gtkern.training import metrics
from gtkern.training.batches import Batch, NodeBatches
from gtkern.training.errors import UserError
from gtkern.training.optimization import Optimization, cosine_with_warmup

__all__ = ["Best", "NodeTask"]


@dataclass
class Best:
    """The best evaluation so far: epoch from 0, metric of both splits, the network's weights."""

    epoch: int
    val: float
    test: float
    weights: dict[str, Tensor]


class NodeTask(lightning.LightningModule):
    """Training and evaluation of a network on the nodes of one graph.

    A method says in `logits` how the network is called, and in `prepare` what can be made ready
    before. One pass over validation and test nodes gives both metrics; the weights of the best
    validation metric are kept in memory.

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
        super().__init__()
        self.network = network
        self.optimization = optimization
        self.metric = metric
        # no buffers: they may be files larger than memory, which nobody should copy or send
        self.x = data.x
        self.y = data.y
        self._labels = data.y
        self._train_nodes = data.train_mask.nonzero().flatten()
        val, test = (mask.nonzero().flatten() for mask in (data.val_mask, data.test_mask))
        self._num_val = val.numel()
        self._eval_nodes = torch.cat((val, test))
        self._batch_size = batch_size
        self._seed = seed
        self._ahead = ahead
        self.history: list[dict[str, float]] = []
        self.best: Best | None = None
        self._losses: list[Tensor] = []
        self._evaluated: list[tuple[Tensor, Tensor]] = []
        self._last: dict[str, float] = {}
        self._started = time.perf_counter()

    def share(self, nodes: Tensor) -> Tensor:
        """This process's part of the nodes of a batch."""
        return nodes.tensor_split(_processes.count())[_processes.rank()]

    def prepare(self, targets: Tensor) -> Any:
        """What `logits` needs of a batch besides its targets; on the CPU, maybe in a thread."""
        return None

    def logits(self, batch: Batch) -> Tensor:
        """The network's output [M, classes] for the batch's targets [M]."""
        raise NotImplementedError

    def report(self) -> dict[str, float]:
        """What a method adds to the row of an epoch."""
        return {}

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
        self._losses = []
        self._started = time.perf_counter()
        self._rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """This process's part of the loss of a batch of training nodes."""
        loss = metrics.loss(self.logits(batch), self.y[batch.targets], batch.known)
        self._losses.append(loss.detach())
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
        self._last = {"val": val, "test": test}
        if self.best is None or val > self.best.val:
            weights = {key: value.clone() for key, value in self.network.state_dict().items()}
            self.best = Best(self.current_epoch, val, test, weights)

    def on_train_epoch_end(self) -> None:
        """Write the epoch's row.

        Raises:
            UserError: the loss is no finite number.
        """
        loss = float(_processes.total(torch.stack(self._losses)).mean())
        self._losses = []
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
        """Add what Lightning does not keep: rows, best weights, the random states."""
        best = None if self.best is None else vars(self.best)
        checkpoint["gtkern"] = {
            "history": self.history,
            "best": best,
            "rng_states": _processes.gather_objects(torch.get_rng_state()),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` added."""
        kept = checkpoint["gtkern"]
        self.history = list(kept["history"])
        self.best = None if kept["best"] is None else Best(**kept["best"])
        states = kept["rng_states"]
        # with more processes than before the new ones keep the states that they began with
        if _processes.rank() < len(states):
            torch.set_rng_state(states[_processes.rank()])
