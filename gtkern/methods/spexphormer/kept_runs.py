"""Runs of Spexphormer kept in one folder, for experiments that share them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from gtkern.data.node import NodeData
from gtkern.methods.spexphormer.run import Spexphormer
from gtkern.methods.spexphormer.settings import Settings
from gtkern.training import settings as settings_of
from gtkern.training.kept_runs import KeptRuns
from gtkern.training.run import RunFolder

__all__ = ["FULL", "Runs"]

FULL = "full"
"""The variant that is the method itself."""


class Runs:
    """Runs on one data set, each in its own folder, VARIANT/seed-N, as `gtkern train` leaves it.

    A run that is finished there is not run again; one that was stopped goes on: see KeptRuns.

    Args:
        settings: of the full method; its seed is replaced.
        data: the graph.
        folder: of all the runs.
        dataset: name of the data in tables.
        device: where to train. backend: of the ops.
        command: for the summaries.
        console: for progress.

    Raises:
        UserError: several processes run. TypeError, ValueError, NotImplementedError: see
            Spexphormer.
    """

    def __init__(
        self,
        settings: Settings,
        data: NodeData,
        folder: RunFolder,
        *,
        dataset: str,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        command: str = "",
        console: Console | None = None,
    ) -> None:
        self.settings = settings
        self.data = data
        self.folder = folder
        self.dataset = dataset
        self.device = torch.device(device)
        self.backend = backend
        self.command = command
        self.console = console or Console(stderr=True)
        about = {"dataset": dataset, "device": str(self.device), "backend": backend}
        self.kept = KeptRuns(folder, about, self.console)
        # what cannot run should not start
        self._method(folder, settings, None)

    def train(
        self,
        name: str,
        seed: int,
        settings: Settings | None = None,
        *,
        scores: bool = False,
        only_scores: bool = False,
    ) -> dict[str, Any]:
        """The summary of a run, which is done now unless it was before.

        Args:
            name: of the variant.
            seed: of everything random.
            settings: of the variant; default: the full method's.
            scores: take phase 1 of the full run.
            only_scores: train phase 1 alone.

        Raises:
            UserError: the folder has another run. InterruptedRunError: the user stopped; the same
            call goes on.
        """
        seeded = settings_of.read(Settings, {**asdict(settings or self.settings), "seed": seed})

        def make(folder: RunFolder) -> Callable[[bool], object]:
            taken = RunFolder(self.path(FULL, seed)) if scores else None
            method = self._method(folder, seeded, taken)
            return lambda resume: method.run(resume=resume, only_scores=only_scores)

        return self.kept.train(f"{name}/seed-{seed}", f"{name}, seed {seed}", seeded, make)

    def path(self, name: str, seed: int) -> pathlib.Path:
        """The folder of a run."""
        return self.folder / name / f"seed-{seed}"

    def _method(
        self, folder: RunFolder, settings: Settings, scores: RunFolder | None
    ) -> Spexphormer:
        return Spexphormer(
            settings,
            self.data,
            folder,
            device=self.device,
            backend=self.backend,
            dataset=self.dataset,
            command=self.command,
            scores_of=scores,
            console=self.console,
        )
