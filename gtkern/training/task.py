"""What every Lightning task here does: schedule, rows of epochs, the best weights, resuming."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from gtkern import _processes
from gtkern.training import metrics
from gtkern.training.errors import UserError
from gtkern.training.optimization import Optimization, schedule_factor

__all__ = ["Best", "Task"]


@dataclass
class Best:
    """The best evaluation so far: epoch from 0, metric of both splits, the network's weights."""

    epoch: int
    val: float
    test: float
    weights: dict[str, Tensor]


class Task(lightning.LightningModule):
    """Training of a network, evaluated on validation and test examples in one pass.

    The weights of the best validation metric are kept in memory. A subclass gives the loaders and
    the steps, appends every training step's loss to `losses`, and calls `evaluated` with both
    metrics.

    Args:
        network: the module to train.
        optimization: see Optimization.
        metric: one of gtkern.training.metrics.METRICS.

    Attributes:
        history: a row for each epoch. best: None before the first evaluation.
        losses: of the steps of the current epoch.
        settled: False: evaluations do not count yet, for the network is to become another one.
    """

    settled = True

    def __init__(self, network: nn.Module, optimization: Optimization, *, metric: str) -> None:
        super().__init__()
        self.network = network
        self.optimization = optimization
        self.metric = metric
        self.history: list[dict[str, float]] = []
        self.best: Best | None = None
        self.losses: list[Tensor] = []
        self._last: dict[str, float] = {}
        self._started = time.perf_counter()
        self._plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None

    def report(self) -> dict[str, float]:
        """What a method adds to the row of an epoch."""
        return {}

    def trained_state(self) -> dict[str, Tensor]:
        """What is kept of the best epoch: the network's state, unless parts of it never change."""
        return self.network.state_dict()

    def parameter_groups(self) -> Any:
        """What the optimizer is given: parameters, or groups with settings of their own."""
        return self.network.parameters()

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule by epochs."""
        settings = self.optimization
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
        optimizer = kind(
            self.parameter_groups(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        if settings.schedule != "plateau":
            scheduler = LambdaLR(optimizer, lambda epoch: schedule_factor(settings, epoch))
            return {"optimizer": optimizer, "lr_scheduler": scheduler}
        # Lightning would step it behind the writing of the checkpoint, and never when resumed
        self._plateau = ReduceLROnPlateau(
            optimizer,
            mode="min" if self.metric in metrics.ERRORS else "max",
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
            threshold=0.0,
        )
        if self._plateau_state is not None:
            self._plateau.load_state_dict(self._plateau_state)
        return optimizer

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock."""
        self.losses = []
        self._started = time.perf_counter()
        self._rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def evaluated(self, val: float, test: float | None) -> None:
        """Keep both metrics, and the weights when validation is better than ever, once settled.

        Without a test, which is then made of the kept weights at the end, it is no number.
        """
        self._last = {"val": val} if test is None else {"val": val, "test": test}
        test = math.nan if test is None else test
        if self.settled and (self.best is None or metrics.better(self.metric, val, self.best.val)):
            weights = {key: value.clone() for key, value in self.trained_state().items()}
            self.best = Best(self.current_epoch, val, test, weights)
        if self._plateau is not None:
            self._plateau.step(val)

    def on_train_epoch_end(self) -> None:
        """Write the epoch's row.

        Raises:
            UserError: the loss is no finite number.
        """
        loss = float(_processes.total(torch.stack(self.losses)).mean())
        self.losses = []
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
        """Add what Lightning does not keep: rows, best weights, the random states, plateaus."""
        best = None if self.best is None else vars(self.best)
        checkpoint["gtkern"] = {
            "history": self.history,
            "best": best,
            "rng_states": _processes.gather_objects(torch.get_rng_state()),
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` added."""
        kept = checkpoint["gtkern"]
        self.history = list(kept["history"])
        self.best = None if kept["best"] is None else Best(**kept["best"])
        # the optimizer is made later
        self._plateau_state = kept.get("plateau")
        states = kept["rng_states"]
        # with more processes than before the new ones keep the states that they began with
        if _processes.rank() < len(states):
            torch.set_rng_state(states[_processes.rank()])
