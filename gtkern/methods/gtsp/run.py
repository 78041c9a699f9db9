"""A run that prunes: from a network to a smaller one, its files and its report."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from gtkern import _processes
from gtkern.data.graphs import GraphDataset
from gtkern.methods.gtsp import pictures
from gtkern.methods.gtsp.joint import (
    JointPruner,
    Pruning,
    make_pruners,
    schedules,
    split_budget,
)
from gtkern.methods.gtsp.report import Figures, figures_table, measure_both
from gtkern.methods.gtsp.settings import PruneSettings
from gtkern.models.saved import save_model
from gtkern.training import memory, plots
from gtkern.training.errors import UserError
from gtkern.training.fit import evaluate
from gtkern.training.graph import GraphTask
from gtkern.training.graph_run import build_network, splits
from gtkern.training.graph_settings import GraphSettings
from gtkern.training.phase_run import PhaseRun
from gtkern.training.run import Phase, RunFolder, Summary

__all__ = ["FINETUNE", "PRUNE", "PruneRun"]

PRUNE, FINETUNE = "prune", "finetune"
"""The phases: with masks, and of the compact network."""


class PruneRun(PhaseRun):
    """Prune a network while it is trained, make it compact, train on, and report.

    Args:
        settings: how to prune.
        base: of the network: model, sizes, data set and its split.
        data: the graphs.
        folder: where to leave everything.
        weights: of the trained network; needed for the start "trained".
        device, backend, command, console: see PhaseRun.
        dataset: name of the data in tables.

    Raises:
        UserError: several processes run, or the weights are not of such a network. ValueError:
            settings, data and weights do not fit together.
    """

    def __init__(
        self,
        settings: PruneSettings,
        base: GraphSettings,
        data: GraphDataset,
        folder: RunFolder,
        *,
        weights: Mapping[str, Tensor] | None = None,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        dataset: str | None = None,
        command: str = "",
        console: Console | None = None,
    ) -> None:
        if _processes.count() > 1:
            raise UserError("a network is pruned in one process")
        if settings.start == "trained" and weights is None:
            raise ValueError("weights must be given to start from a trained network, got None")
        super().__init__(
            folder,
            method=f"gtsp-{base.model}",
            dataset=dataset or data.name,
            seed=settings.seed,
            metric=data.metric,
            device=device,
            backend=backend,
            command=command,
            console=console,
        )
        self.settings = settings
        self.base = base
        self.data = data
        self.weights = None if settings.start == "scratch" else weights
        self.splits = splits(base, data)

    def run(self, *, resume: bool = False) -> Summary:
        """Prune, train on, and write everything.

        Args:
            resume: go on from the checkpoints in the folder.

        Raises:
            InterruptedRunError: the user stopped; `resume` goes on. UserError: training diverged,
            a layer cannot be pruned, or the weights are of another network.
        """
        if not resume:
            self.clean()
        torch.manual_seed(self.settings.seed)
        network = self._network()
        dense = copy.deepcopy(network)
        try:
            chosen, about = self._chosen(network)
            pruner = make_pruners(chosen, schedules(chosen, self._steps_per_epoch()), network)
            pruner.prepare(network)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.base.model} on {self.dataset}: {error}") from error
        phases = [self._prune(network, pruner, resume, about)]
        self._load(network, PRUNE)
        pruner.restored()
        kept = pruner.kept()
        network = pruner.compact(network)
        if self.settings.finetune:
            phases.append(self._finetune(network, resume))
            self._load(network, FINETUNE)
        self._export(network, phases[-1], kept)
        self._report(dense, network, kept, phases, about)
        with self.folder.replacing("plots/curves.png") as part:
            plots.curves(part, self.rows, self.best, self.metric)
        return self.summarize(phases)

    def table(self) -> Table:
        """The report of the run in the folder."""
        report = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        dense, compact = (Figures(**report[name]) for name in ("dense", "compact"))
        title = f"{self.base.model} on {self.dataset}, pruned; metric: {self.metric}"
        return figures_table(title, dense, compact)

    def _network(self) -> nn.Module:
        try:
            network = build_network(self.base, self.data, self.backend)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.base.model} on {self.dataset}: {error}") from error
        if self.weights is not None:
            try:
                network.load_state_dict(dict(self.weights))
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"the checkpoint is of another architecture than {self.base.model} with the "
                    f"run's settings: {reason}"
                ) from error
        return network

    def _chosen(self, network: nn.Module) -> tuple[PruneSettings, dict[str, Any]]:
        """The settings with their ratios found, and what is known of them."""
        chosen, about = self.settings, {}
        if chosen.budget is not None:
            batch = self._batch(torch.device("cpu"))
            chosen, dense, compact = split_budget(chosen, network, batch)
            about = {"budget": self.settings.budget, "budget_flops": [dense, compact]}
        return chosen, {"ratios": chosen.ratios, **about}

    def _steps_per_epoch(self) -> int:
        graphs, size = self.splits[0].numel(), self.settings.training.batch_size
        full, rest = divmod(graphs, size)
        # a last batch of a single graph is left out
        return max(1, full + (rest > 1))

    def _batch(self, device: torch.device) -> Any:
        """The graphs to measure on."""
        return self.data.graphs.batch(self._measured()).to(device)

    def _measured(self) -> Tensor:
        """Their numbers: the first batch of the training's."""
        return self.splits[0][: self.settings.training.batch_size]

    def _prune(
        self, network: nn.Module, pruner: JointPruner, resume: bool, about: dict[str, Any]
    ) -> Phase:
        phase = self.finished(PRUNE, self.folder) if resume else None
        if phase is not None:
            return phase
        task = self._task(network)
        memory.reset_peak(self.device)
        began = time.perf_counter()
        earlier = self.fit(PRUNE, task, resume, [Pruning(pruner)])
        seconds = earlier + time.perf_counter() - began
        return self.finish(PRUNE, task, seconds, {**about, "kept": pruner.kept()})

    def _finetune(self, network: nn.Module, resume: bool) -> Phase:
        phase = self.finished(FINETUNE, self.folder) if resume else None
        if phase is not None:
            return phase
        training = replace(
            self.settings.training,
            epochs=self.settings.finetune,
            lr=self.settings.finetune_lr,
            schedule="cosine",
            warmup_epochs=0,
        )
        task = GraphTask(network, self.data, self.splits, training, seed=self.settings.seed)
        memory.reset_peak(self.device)
        began = time.perf_counter()
        earlier = self.fit(FINETUNE, task, resume)
        return self.finish(FINETUNE, task, earlier + time.perf_counter() - began, {})

    def _task(self, network: nn.Module) -> GraphTask:
        return GraphTask(
            network, self.data, self.splits, self.settings.training, seed=self.settings.seed
        )

    def _load(self, network: nn.Module, phase: str) -> None:
        """Give the network the best weights of a phase."""
        network.load_state_dict(load_file(self.folder / f"checkpoints/{phase}.safetensors"))

    def _export(self, network: nn.Module, phase: Phase, kept: Mapping[str, Any]) -> None:
        graphs = self.data.graphs
        save_model(
            network.cpu(),
            self.folder / "model",
            node_features=graphs.node_categories or graphs.num_features,
            num_tasks=self.data.num_outputs,
            edge_features=graphs.edge_categories or graphs.num_edge_features or None,
            about={
                "dataset": self.dataset,
                "seed": self.settings.seed,
                "val": phase.val,
                "test": phase.test,
                "kept": kept,
            },
        )

    def _report(
        self,
        dense: nn.Module,
        compact: nn.Module,
        kept: Mapping[str, Mapping[str, float]],
        phases: list[Phase],
        about: Mapping[str, Any],
    ) -> None:
        """Write report.json and the pictures."""
        for network in (dense, compact):
            network.to(self.device)
        batch = self._batch(self.device)
        before, after = measure_both(dense, compact, batch)
        for network, figures in ((dense, before), (compact, after)):
            if network is dense and self.weights is None:
                # it was never trained
                continue
            figures.val, figures.test = evaluate(self._task(network), device=self.device)
            train, _, test = self.splits
            seen = GraphTask(
                network,
                self.data,
                (train, train, test),
                self.settings.training,
                seed=self.settings.seed,
            )
            figures.train = evaluate(seen, device=self.device)[0]
            network.to(self.device)
        report = {
            "metric": self.metric,
            **about,
            "kept": kept,
            "dense": asdict(before),
            "compact": asdict(after),
        }
        self.folder.write_text("report.json", json.dumps(report, indent=2) + "\n")
        known = self.data.smiles
        chosen = self._measured().tolist() if known else []
        smiles = [known[graph] for graph in chosen]
        pictures.draw_all(self.folder, dense, compact, batch, kept, smiles)
