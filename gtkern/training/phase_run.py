"""What all runs share: training a phase, keeping it, the summary."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from safetensors.torch import save_file

from gtkern import _processes
from gtkern.training import memory
from gtkern.training.errors import InterruptedRunError, LostProcessError, UserError
from gtkern.training.fit import fit
from gtkern.training.run import (
    Comparison,
    Phase,
    RunFolder,
    Summary,
    process_seconds,
    versions,
)
from gtkern.training.task import Task

__all__ = ["PhaseRun"]


class PhaseRun:
    """A run of a method in phases; a method adds what they are.

    Args:
        folder: where to leave everything.
        method: its name. dataset: name of the data. seed: for the summary.
        metric: of the evaluation, by its name.
        device: where to train.
        backend: of the ops.
        command: for the summary.
        console: for progress and remarks.

    Attributes:
        first: whether this process is the one that writes.
        rows: of the epochs so far, by phase. best: kept epoch from 0, by phase.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        method: str,
        dataset: str,
        seed: int,
        metric: str,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        command: str = "",
        console: Console | None = None,
    ) -> None:
        self.folder = folder
        self.method = method
        self.dataset = dataset
        self.seed = seed
        self.metric = metric
        self.device = torch.device(device)
        self.backend = backend
        self.command = command
        self.console = console or Console(stderr=True)
        self.first = _processes.rank() == 0
        self.rows: dict[str, list[dict[str, float]]] = {}
        self.best: dict[str, int] = {}

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise LostProcessError where what fails inside is the link to another process."""
        try:
            yield
        except RuntimeError as error:
            if _processes.lost(error):
                raise LostProcessError("another process of the run ended") from error
            raise

    def clean(self) -> None:
        """Remove what an earlier run left, so that nothing of it is taken for this one's."""
        trained = ("features", "training", "refit", "pretraining", "tuning", "prune", "finetune")
        patterns = (
            *(f"checkpoints/{name}.*" for name in ("phase*", *trained)),
            "scores/*.npy",
            "plots/*.png",
        )
        for pattern in patterns:
            for path in self.folder.path.glob(pattern):
                path.unlink()
        for name in ("summary.json", "metrics.csv"):
            (self.folder / name).unlink(missing_ok=True)

    def fit(
        self,
        name: str,
        task: Task,
        resume: bool,
        callbacks: Sequence[Callback] = (),
        *,
        accumulate: int = 1,
    ) -> float:
        """Train a phase; gives the seconds spent in earlier processes.

        Args:
            name: of the phase. task: to train. resume: go on from its checkpoint.
            callbacks, accumulate: see gtkern.training.fit.fit.
        """
        if self.first:
            (self.folder / "checkpoints").mkdir(exist_ok=True)
        began = time.perf_counter()
        try:
            fit(
                task,
                title=name,
                device=self.device,
                console=self.console,
                checkpoint=self.folder / f"checkpoints/{name}.ckpt",
                resume=resume,
                callbacks=callbacks,
                accumulate=accumulate,
            )
        except (InterruptedRunError, LostProcessError, UserError):
            self._keep(name, task)
            raise
        self._keep(name, task)
        spent = sum(row["seconds"] for row in task.history)
        return max(0.0, spent - (time.perf_counter() - began))

    def finish(
        self,
        name: str,
        task: Task,
        seconds: float,
        details: dict[str, Any],
        *,
        edges_kept: float = 1.0,
    ) -> Phase:
        """Write the record of a phase that was trained, and return it."""
        best = task.best
        assert best is not None
        phase = Phase(
            name=name,
            parameters=sum(
                parameter.numel()
                for parameter in task.network.parameters()
                if parameter.requires_grad
            ),
            epochs=len(task.history),
            seconds=seconds,
            seconds_per_epoch=statistics.median(row["seconds"] for row in task.history),
            peak_bytes=max(_processes.gather_objects(memory.peak_bytes(self.device))),
            val={self.metric: best.val},
            test={self.metric: best.test},
            best_epoch=best.epoch + 1,
            edges_kept=edges_kept,
            details=details,
        )
        record = {"phase": asdict(phase), "rows": task.history}
        if self.first:
            self.folder.write_text(f"checkpoints/{name}.json", json.dumps(record) + "\n")
        return phase

    def finished(self, name: str, folder: RunFolder) -> Phase | None:
        """The record of a phase that an earlier process finished."""
        path = folder / f"checkpoints/{name}.json"
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        phase = Phase(**record["phase"])
        self.rows[name] = record["rows"]
        self.best[name] = phase.best_epoch - 1
        return phase

    def summarize(
        self, phases: list[Phase], comparison: Sequence[Comparison] = (), frozen: int = 0
    ) -> Summary:
        """Write the summary of the run, and return it.

        Args:
            phases: in order. comparison: with other code.
            frozen: parameters that no phase trained.
        """
        parameters = sum(phase.parameters for phase in phases)
        summary = Summary(
            command=self.command,
            method=self.method,
            dataset=self.dataset,
            seed=self.seed,
            backend=self.backend,
            device=str(self.device),
            versions=versions(),
            test=phases[-1].test,
            val=phases[-1].val,
            seconds=process_seconds(),
            peak_bytes=max(phase.peak_bytes for phase in phases),
            trained_parameters=parameters,
            total_parameters=parameters + frozen,
            phases=phases,
            comparison=list(comparison),
            processes=_processes.count(),
        )
        if self.first:
            self.folder.write_summary(summary)
        return summary

    def _keep(self, name: str, task: Task) -> None:
        """Write the rows so far and the best weights."""
        self.rows[name] = task.history
        if not self.first:
            return
        rows = [
            {"phase": phase, **{**row, "epoch": int(row["epoch"]) + 1}}
            for phase, rows in self.rows.items()
            for row in rows
        ]
        self.folder.write_rows("metrics.csv", rows)
        if task.best is not None:
            self.best[name] = task.best.epoch
            weights = {key: value.cpu().contiguous() for key, value in task.best.weights.items()}
            about = {"epoch": task.best.epoch + 1, "val": task.best.val, "test": task.best.test}
            with self.folder.replacing(f"checkpoints/{name}.safetensors") as part:
                save_file(weights, part, {key: str(value) for key, value in about.items()})
