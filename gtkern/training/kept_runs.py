"""Runs kept in one folder, each done once."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from gtkern import _processes
from gtkern.training import settings as settings_of
from gtkern.training.errors import InterruptedRunError, UserError
from gtkern.training.run import RunFolder, read_summary

__all__ = ["KeptRuns"]


class KeptRuns:
    """Runs on one data set, each in a folder of its own, as `gtkern train` leaves it.

    A run that is finished there is not run again; one that was stopped goes on.

    Args:
        folder: of all the runs.
        about: what all runs of a folder have in common, or they would not compare.
        console: for progress.

    Raises:
        UserError: several processes run.
    """

    def __init__(self, folder: RunFolder, about: Mapping[str, str], console: Console) -> None:
        if _processes.count() > 1:
            raise UserError("an experiment is of one process")
        self.folder = folder
        self.about = dict(about)
        self.console = console

    def train(
        self,
        name: str,
        title: str,
        settings: Any,
        make: Callable[[RunFolder], Callable[[bool], object]],
    ) -> dict[str, Any]:
        """The summary of a run, which is done now unless it was before.

        Args:
            name: of its folder below that of all runs. title: what it is called.
            settings: of the run.
            make: prepares the run in its folder; what it gives is called with whether to go on.

        Raises:
            UserError: the folder has another run. InterruptedRunError: the user stopped; the same
            call goes on.
        """
        self._claim()
        folder = RunFolder(self.folder / name)
        begun = (folder / "config.yaml").is_file()
        if begun:
            before = settings_of.read(type(settings), settings_of.load(folder / "config.yaml"))
            key = settings_of.first_difference(before, settings)
            if key is not None:
                raise UserError(
                    f"{folder.path} holds a run with another {key}; --out must name another folder"
                )
        if begun and (folder / "summary.json").is_file():
            return self._summary(folder)
        # what the runs before held is not this one's memory
        gc.collect()
        run = make(folder)
        folder.write_text("config.yaml", settings_of.dump(settings))
        try:
            run(begun)
        except InterruptedRunError as error:
            raise InterruptedRunError(
                f"stopped in {error} of {title}; the same command goes on"
            ) from None
        summary = self._summary(folder)
        seconds = sum(phase["seconds"] for phase in summary["phases"])
        (test,) = summary["test"].values()
        self.console.print(f"{title}: test {test:.4f}, {seconds:.1f} s", highlight=False)
        return summary

    def forget(self, name: str) -> None:
        """Let `train` do the run of this name anew."""
        for file in ("config.yaml", "summary.json"):
            (self.folder / name / file).unlink(missing_ok=True)

    def _claim(self) -> None:
        """Refuse a folder whose runs would not compare with these."""
        path = self.folder / "about.json"
        if not path.is_file():
            self.folder.write_text("about.json", json.dumps(self.about) + "\n")
            return
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
        for key, value in self.about.items():
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
