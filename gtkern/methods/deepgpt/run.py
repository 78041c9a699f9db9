"""A run that tunes a pre-trained network on one data set, and its baselines."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from gtkern import _processes, ops
from gtkern.data.graphs import GraphDataset
from gtkern.methods.deepgpt.backbone import new_head
from gtkern.methods.deepgpt.counts import parameter_counts
from gtkern.methods.deepgpt.files import save_prompts
from gtkern.methods.deepgpt.pretrained import Backbone
from gtkern.methods.deepgpt.settings import TuneSettings
from gtkern.methods.deepgpt.tuner import PromptTuner
from gtkern.models.saved import save_model
from gtkern.ragged import Ragged
from gtkern.training import memory, plots
from gtkern.training.errors import UserError
from gtkern.training.graph import GraphTask
from gtkern.training.graph_settings import MODELS, GraphTraining
from gtkern.training.phase_run import PhaseRun
from gtkern.training.run import Phase, RunFolder, Summary

__all__ = ["PHASE", "TuneRun", "TuneTask", "make_network", "tune_splits"]

PHASE = "tuning"


def tune_splits(settings: TuneSettings, data: GraphDataset) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of training, validation and test graphs.

    Of folds, one is evaluated and the others are trained on, so that validation and test are the
    same graphs, as in the paper; other splits have a test of their own.

    Raises:
        ValueError: there are not enough graphs for the folds, or the set has no such split.
    """
    if settings.split != "folds":
        kind = None if settings.split == "default" else settings.split
        train, val, test = data.split(settings.seed, kind)
        return train, val, test
    train, other, held = data.folds(settings.folds, settings.seed)[settings.fold]
    return torch.cat((train, other)), held, held


def make_network(settings: TuneSettings, model: nn.Module, num_tasks: int) -> nn.Module:
    """The backbone with what is trained: a PromptTuner, or the whole with a new head.

    Raises:
        ValueError: the prompts do not fit the model.
    """
    if settings.train == "full":
        backbone: Any = model
        backbone.head = new_head(model, num_tasks)
        return model.requires_grad_(True).train()
    prompts = settings.prompts
    layers: Sequence[int] | None = None
    if prompts.layers is not None:
        layers = range(*prompts.layers)
    tuner = PromptTuner(
        model,
        prefix_tokens=prompts.prefix_tokens if settings.train in ("deepgpt", "prefix") else 0,
        graph_prompt=settings.train in ("deepgpt", "prompt"),
        layers=layers,
        reparameterize=prompts.reparameterize,
        graph_prompt_init=prompts.graph_prompt_init,
        prefix_std=prompts.prefix_std,
        dropout=prompts.dropout,
        backbone_dropout=settings.backbone_dropout,
        num_tasks=num_tasks,
    )
    # a saved model is in evaluation, and Lightning leaves it so
    return tuner.train()


class TuneTask(GraphTask):
    """Training of prompts and heads; what is kept of the best epoch is what is trained."""

    def trained_state(self) -> dict[str, Tensor]:
        """The state of prompts and head, or of the whole network where all is trained."""
        state = self.network.state_dict()
        if not isinstance(self.network, PromptTuner):
            return state
        return {name: value for name, value in state.items() if not name.startswith("model.")}


class TuneRun(PhaseRun):
    """Tune a backbone on one data set.

    Args:
        settings: of the run.
        backbone: what to tune.
        data: the graphs.
        folder: where to leave everything.
        device, backend, command, console: see PhaseRun.
        dataset: name of the data in tables.

    Raises:
        UserError: several processes run. ValueError: backbone and data do not fit together, or the
            data have no such split.
    """

    def __init__(
        self,
        settings: TuneSettings,
        backbone: Backbone,
        data: GraphDataset,
        folder: RunFolder,
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        dataset: str | None = None,
        command: str = "",
        console: Console | None = None,
    ) -> None:
        if _processes.count() > 1:
            raise UserError("a network is tuned in one process")
        super().__init__(
            folder,
            method=f"{settings.train}-{backbone.model}",
            dataset=dataset or data.name,
            seed=settings.seed,
            metric=data.metric,
            device=device,
            backend=backend,
            command=command,
            console=console,
        )
        self.settings = settings
        self.backbone = backbone
        self.data = data
        self.splits = tune_splits(settings, data)
        backbone.check(data)
        # what cannot run should not start
        q = torch.zeros(1, 1, 1, device=self.device)
        one = Ragged.from_ptr(torch.tensor([0, 1], device=self.device))
        ops.ragged_attention(q, q, q, one, backend=backend)

    def run(self, *, resume: bool = False) -> Summary:
        """Tune and write everything.

        Args:
            resume: go on from the checkpoint in the folder.

        Raises:
            InterruptedRunError: the user stopped; `resume` goes on. UserError: training diverged,
            or the backbone or the prompts do not fit.
        """
        if not resume:
            self.clean()
        phase = self.finished(PHASE, self.folder) if resume else None
        if phase is None:
            phase = self._tune(resume)
        with self.folder.replacing("plots/curves.png") as part:
            plots.curves(part, self.rows, self.best, self.metric)
        return self.summarize([phase], frozen=phase.details["frozen"])

    def _tune(self, resume: bool) -> Phase:
        memory.reset_peak(self.device)
        before = memory.resident_bytes(self.device)
        began = time.perf_counter()
        graphs = self.data.graphs
        attend = functools.partial(ops.ragged_attention, backend=self.backend)
        try:
            encoded = MODELS[self.backbone.model][0]
            wanted = encoded.encodings(self.backbone.settings)
            if not all(name in graphs.arrays for name in wanted):
                encoded.encode(graphs, self.backbone.settings)
            model = self.backbone.read(attend)
            torch.manual_seed(self.settings.seed)
            network = make_network(self.settings, model, self.data.num_outputs)
        except (FileNotFoundError, TypeError, ValueError) as error:
            raise UserError(f"{self.backbone.path} on {self.dataset}: {error}") from error
        prepared = time.perf_counter() - began
        task = TuneTask(network, self.data, self.splits, self._training(), seed=self.settings.seed)
        earlier = self.fit(PHASE, task, resume)
        details = {
            "graphs": {
                part: numbers.numel()
                for part, numbers in zip(("train", "val", "test"), self.splits, strict=True)
            },
            "prepare_seconds": prepared,
            "resident_bytes_before": before,
            "last": {self.metric: task.history[-1].get("test")},
            **_counted(network),
        }
        if self.data.task == "regression":
            # predictions are in these units
            details |= {"mean": task.mean.tolist(), "deviation": task.deviation.tolist()}
        phase = self.finish(PHASE, task, earlier + time.perf_counter() - began, details)
        assert task.best is not None
        network.load_state_dict(task.best.weights, strict=not isinstance(network, PromptTuner))
        self._save(network.cpu(), phase)
        return phase

    def _training(self) -> GraphTraining:
        training = self.settings.training
        if self.settings.train != "full":
            return training
        return replace(training, lr=self.settings.full_lr)

    def _save(self, network: nn.Module, phase: Phase) -> None:
        """Write the prompts, or the whole network where all of it was trained."""
        if isinstance(network, PromptTuner):
            save_prompts(self.folder / "prompts.safetensors", network)
            return
        save_model(
            network,
            self.folder / "model",
            node_features=self.backbone.node_features,
            num_tasks=self.data.num_outputs,
            edge_features=self.backbone.edge_features,
            about={
                "tuned_from": str(self.backbone.path),
                "dataset": self.dataset,
                "seed": self.seed,
                "val": phase.val,
                "test": phase.test,
            },
        )


def _counted(network: nn.Module) -> dict[str, Any]:
    """How many parameters are prompts, of the head, of the backbone, and frozen."""
    if isinstance(network, PromptTuner):
        counts = parameter_counts(network)
        return {
            "prompts": counts.prompts,
            "head": counts.head,
            "backbone": counts.backbone,
            "share": counts.share,
            "frozen": counts.backbone,
        }
    model: Any = network
    head = sum(parameter.numel() for parameter in model.head.parameters())
    total = sum(parameter.numel() for parameter in network.parameters())
    return {
        "prompts": 0,
        "head": head,
        "backbone": total - head,
        "share": 1.0,
        "frozen": 0,
    }
