"""Runs of Spexphormer kept in one folder, for experiments that share them."""

from __future__ import annotations

import gc
import json
import pathlib
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from gtkern import _processes
from gtkern.data.node import NodeData
from gtkern.methods.spexphormer.run import Spexphormer
from gtkern.methods.spexphormer.settings import Settings
from gtkern.training import settings as settings_of
from gtkern.training.errors import InterruptedRunError, UserError
from gtkern.training.run import RunFolder, read_summary

__all__ = ["FULL", "Runs"]

FULL = "full"
"""The variant that is the method itself."""


class Runs:
    """Runs on one data set, each in its own folder, VARIANT/seed-N, as `gtkern train` leaves it.

    A run that is finished there is not run again; one that was stopped goes on.

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
        if _processes.count() > 1:
            raise UserError("an experiment is of one process")
        self.settings = settings
        self.data = data
        self.folder = folder
        self.dataset = dataset
        self.device = torch.device(device)
        self.backend = backend
        self.command = command
        self.console = console or Console(stderr=True)
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
        self._claim()
        seeded = settings_of.read(Settings, {**asdict(settings or self.settings), "seed": seed})
        folder = RunFolder(self.path(name, seed))
        begun = (folder / "config.yaml").is_file()
        if begun:
            before = settings_of.read(Settings, settings_of.load(folder / "config.yaml"))
            key = settings_of.first_difference(before, seeded)
            if key is not None:
                raise UserError(
                    f"{folder.path} holds a run with another {key}; --out must name another folder"
                )
        if begun and (folder / "summary.json").is_file():
            return self._summary(folder)
        # what the runs before held is not this one's memory
        gc.collect()
        method = self._method(folder, seeded, RunFolder(self.path(FULL, seed)) if scores else None)
        folder.write_text("config.yaml", settings_of.dump(seeded))
        try:
            method.run(resume=begun, only_scores=only_scores)
        except InterruptedRunError as error:
            raise InterruptedRunError(
                f"stopped in {error} of {name}, seed {seed}; the same command goes on"
            ) from None
        summary = self._summary(folder)
        seconds = sum(phase["seconds"] for phase in summary["phases"])
        self.console.print(
            f"{name}, seed {seed}: test {summary['test'][seeded.metric]:.4f}, {seconds:.1f} s",
            highlight=False,
        )
        return summary

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

    def _claim(self) -> None:
        """Refuse a folder whose runs would not compare with these."""
        about = {"dataset": self.dataset, "device": str(self.device), "backend": self.backend}
        path = self.folder / "about.json"
        if not path.is_file():
            self.folder.write_text("about.json", json.dumps(about) + "\n")
            return
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
        for key, value in about.items():
            if before.get(key) != value:
                raise UserError(
                    f"{self.folder.path} holds experiments with the {key} {before.get(key)}, got "
                    f"{value}; --out must name another folder"
                )

    def _summary(self, folder: RunFolder) -> dict[str, Any]:
        path = folder / "summary.json"
        try:
            return read_summary(path)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
