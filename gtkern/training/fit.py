"""Run a Lightning task: progress, checkpoints, and a clean stop when the user interrupts."""

from __future__ import annotations

import logging
import os
import pathlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gtkern import _processes
from gtkern.training.errors import InterruptedRunError, LostProcessError, UserError
from gtkern.training.task import Best, Task

__all__ = ["evaluate", "fit", "join_processes", "resolve_device"]

SECONDS_BETWEEN_CHECKPOINTS = 30.0
LARGEST_SHARE = 0.01
"""Part of the time that checkpoints may take: quick ones are written more often."""
_REFRESH_PER_SECOND = 4


def resolve_device(devices: str) -> torch.device:
    """The device behind "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: no such name, or no such device here.
    """
    if devices == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(devices)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--devices must be auto, cpu, cuda or cuda:N, got {devices!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--devices {devices}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def join_processes(devices: str) -> torch.device:
    """The device of this process; joins the others where torchrun started several.

    They talk through NCCL on GPUs, each process on one of its own, and through gloo on CPUs.

    Raises:
        UserError: as resolve_device; or a numbered device for several processes, or fewer GPUs than
            processes on this machine.
    """
    environment = TorchElasticEnvironment()
    if not (TorchElasticEnvironment.detect() and environment.world_size() > 1):
        return resolve_device(devices)
    if ":" in devices:
        raise UserError(f"--devices must not name one for several processes, got {devices!r}")
    device = resolve_device(devices)
    if device.type == "cuda":
        device = resolve_device(f"cuda:{environment.local_rank()}")
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


class _Keeper(Checkpoint):
    """Writes the checkpoint at the end, now and then, and when the user asks to stop.

    Lightning calls a Checkpoint after the task's own hook, which adds the epoch's row.
    """

    def __init__(self, path: pathlib.Path | None, stopping: Callable[[], bool]) -> None:
        self.path = path
        self.stopping = stopping
        self.saved_at = time.monotonic()
        self.wait = 0.0

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        # what one process was told, or finds due, all do
        trainer.should_stop, overdue = _processes.any_of(
            self.stopping(), time.monotonic() - self.saved_at > self.wait
        )
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if self.path is not None and (trainer.should_stop or last or overdue):
            began = time.monotonic()
            part = self.path.with_suffix(".part")
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                os.replace(part, self.path)
            self.saved_at = time.monotonic()
            self.wait = min(SECONDS_BETWEEN_CHECKPOINTS, (self.saved_at - began) / LARGEST_SHARE)


class _Bar(Callback):
    """One progress bar over the epochs, on a terminal only."""

    def __init__(self, title: str, console: Console) -> None:
        self.progress = Progress(
            TextColumn(f"[bold]{title}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            refresh_per_second=_REFRESH_PER_SECOND,
            disable=not console.is_terminal or _processes.rank() > 0,
        )

    def on_train_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        self.task = self.progress.add_task(
            "", total=trainer.max_epochs, completed=trainer.current_epoch, figures=""
        )
        self.progress.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        _: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.num_training_batches > 1 and not self.progress.disable:
            done = (batch_idx + 1) / trainer.num_training_batches
            self.progress.update(self.task, completed=trainer.current_epoch + done)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, task: lightning.LightningModule
    ) -> None:
        if self.progress.disable:
            return
        assert isinstance(task, Task)
        best = "" if task.best is None else f"best {task.best.val:.4f}"
        row = task.history[-1] if task.history else {}
        figures = f"loss {row.get('loss', 0):.4f}  val {row.get('val', 0):.4f}  {best}"
        self.progress.update(self.task, completed=trainer.current_epoch + 1, figures=figures)

    def close(self) -> None:
        self.progress.stop()


def fit(
    task: Task,
    *,
    title: str,
    device: torch.device,
    console: Console,
    checkpoint: pathlib.Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    accumulate: int = 1,
) -> None:
    """Train a task to its last epoch.

    Args:
        task: what to train.
        title: name in the progress bar.
        device: where.
        console: for the progress bar.
        checkpoint: file of the state to resume from; written at the end, when the user stops, and
            at the end of an epoch every 30 seconds, sooner where that takes 1 % of the time at
            most. None: nothing is written.
        resume: start from `checkpoint` if it is there.
        callbacks: of the method; their state is part of the checkpoint.
        accumulate: steps whose gradients make one update.

    Raises:
        InterruptedRunError: the user stopped the run (Ctrl-C or SIGTERM: after the epoch; a second
            time: at once). LostProcessError: another process ended. UserError: training diverged.
    """
    bar = _Bar(title, console)
    start = None
    if resume and checkpoint is not None and checkpoint.is_file():
        start = checkpoint
    with _stop_on_signal() as stopping, _quiet():
        trainer = lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            **_strategy(device),
            max_epochs=task.optimization.epochs,
            check_val_every_n_epoch=task.optimization.eval_every,
            gradient_clip_val=task.optimization.clip_grad_norm or None,
            accumulate_grad_batches=accumulate,
            callbacks=[bar, *callbacks, _Keeper(checkpoint, stopping)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(task, ckpt_path=None if start is None else str(start))
        except (KeyboardInterrupt, SystemExit) as error:
            # Lightning ends the process on a second Ctrl-C
            raise InterruptedRunError(title) from error
        except RuntimeError as error:
            if _processes.lost(error):
                raise LostProcessError(f"{title}: another process of the run ended") from error
            raise
        finally:
            bar.close()
        (stopped,) = _processes.any_of(stopping())
    if stopped:
        raise InterruptedRunError(title)


def evaluate(task: Task, *, device: torch.device) -> tuple[float, float]:
    """The metrics of a task's network as it is, of validation and test examples."""
    task.best, task.settled = None, True
    with _quiet():
        lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            **_strategy(device),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).validate(task, verbose=False)
    best: Best | None = task.best
    assert best is not None
    return best.val, best.test


def _strategy(device: torch.device) -> dict[str, Any]:
    """What the Trainer is told of the processes of this run."""
    if _processes.count() == 1:
        return {"devices": [device.index or 0] if device.type == "cuda" else 1}
    environment = TorchElasticEnvironment()
    machines = _processes.gather_objects(environment.node_rank())
    strategy = DDPStrategy(
        cluster_environment=environment,
        process_group_backend=dist.get_backend(),
        # the norms' statistics are those of all processes already
        broadcast_buffers=False,
    )
    return {
        "strategy": strategy,
        "devices": machines.count(environment.node_rank()),
        "num_nodes": len(set(machines)),
        "use_distributed_sampler": False,
    }


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop; a second Ctrl-C acts as ever."""
    wished = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wished.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def wish(number: int, _: Any) -> None:
        if wished.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        wished.set()

    for number in before:
        signal.signal(number, wish)
    try:
        yield wished.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Lightning's remarks about loaders, devices and its own products."""
    logger = logging.getLogger("lightning.pytorch")
    fabric = logging.getLogger("lightning.fabric")
    levels = logger.level, fabric.level
    logger.setLevel(logging.ERROR)
    fabric.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*lightning\.fabric.*|.*treespec.*")
        try:
            yield
        finally:
            logger.setLevel(levels[0])
            fabric.setLevel(levels[1])
