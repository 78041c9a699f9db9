"""A run of pre-training: from molecules to a network that other commands take as their backbone."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from gtkern import _processes, ops
from gtkern.data import _files
from gtkern.data.molecule_targets import DESCRIPTORS, molecule_targets
from gtkern.data.packed import PackedGraphs
from gtkern.data.splits import Split, random_graph_split
from gtkern.models.saved import save_model
from gtkern.training import memory, plots
from gtkern.training.errors import UserError
from gtkern.training.graph_settings import MODELS
from gtkern.training.phase_run import PhaseRun
from gtkern.training.pretrain import ELEMENT, Pretraining, PretrainTask
from gtkern.training.pretrain_settings import PretrainSettings
from gtkern.training.run import Phase, RunFolder, Summary

__all__ = ["Molecules", "PretrainRun"]

PHASE = "pretraining"
TARGETS_FORMAT = 1
"""Grows when the same molecules give other targets."""


class Molecules(Protocol):
    """Molecules to pre-train on."""

    @property
    def graphs(self) -> PackedGraphs:
        """With OGB's features."""

    @property
    def smiles(self) -> Sequence[str]:
        """Of each of them."""


class _Prepared(NamedTuple):
    """Molecules with their targets, and how they are split."""

    graphs: PackedGraphs
    split: Split


class PretrainRun(PhaseRun):
    """Pre-train a network on molecules, and save it.

    Args:
        settings: of the run.
        data: the molecules.
        folder: where to leave everything; the network in `model`.
        device: where to train. backend: of the ops.
        dataset: name of the molecules in tables. command: for the summary.
        console: for progress.

    Raises:
        UserError: several processes run. ValueError: not every graph has its SMILES.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        data: Molecules,
        folder: RunFolder,
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        dataset: str | None = None,
        command: str = "",
        console: Console | None = None,
    ) -> None:
        if _processes.count() > 1:
            raise UserError("a network is pre-trained in one process")
        if len(data.smiles) != len(data.graphs):
            raise ValueError(
                f"there must be a SMILES for each of the {len(data.graphs)} graphs of "
                f"{settings.dataset}, got {len(data.smiles)}: only molecules are pre-trained on"
            )
        super().__init__(
            folder,
            method=f"pretrain-{settings.model}",
            dataset=dataset or settings.dataset,
            seed=settings.seed,
            metric="rmse",
            device=device,
            backend=backend,
            command=command,
            console=console,
        )
        self.settings = settings
        self.graphs = data.graphs
        self.smiles = tuple(data.smiles)

    def run(self, *, resume: bool = False) -> Summary:
        """Pre-train and write everything.

        Args:
            resume: go on from the checkpoint in the folder.

        Raises:
            InterruptedRunError: the user stopped; `resume` goes on. UserError: training diverged,
            a molecule cannot be read, or the model cannot be made for them.
        """
        if not resume:
            self.clean()
        phase = self.finished(PHASE, self.folder) if resume else None
        if phase is None:
            phase = self._train(resume)
        with self.folder.replacing("plots/curves.png") as part:
            plots.curves(part, self.rows, self.best, self.metric)
        return self.summarize([phase])

    def _train(self, resume: bool) -> Phase:
        memory.reset_peak(self.device)
        before = memory.resident_bytes(self.device)
        began = time.perf_counter()
        try:
            graphs, split = self._prepared()
            MODELS[self.settings.model][0].encode(graphs, self.settings.network)
            torch.manual_seed(self.settings.seed)
            network = Pretraining(self._backbone(graphs), graphs.node_categories[ELEMENT])
        except (ImportError, TypeError, ValueError) as error:
            raise UserError(f"{self.settings.model} on {self.dataset}: {error}") from error
        prepared = time.perf_counter() - began
        task = PretrainTask(network, graphs, len(DESCRIPTORS), split, self.settings)
        earlier = self.fit(PHASE, task, resume)
        train, val, test = (part.numel() for part in split)
        details = {
            "graphs": {"train": train, "val": val, "test": test},
            "prepare_seconds": prepared,
            "resident_bytes_before": before,
            "descriptors": list(DESCRIPTORS),
        }
        phase = self.finish(PHASE, task, earlier + time.perf_counter() - began, details)
        network.load_state_dict(load_file(self.folder / f"checkpoints/{PHASE}.safetensors"))
        save_model(
            network.backbone,
            self.folder / "model",
            node_features=graphs.node_categories,
            num_tasks=graphs.num_tasks,
            edge_features=graphs.edge_categories,
            about={
                "pretrained_on": self.dataset,
                "seed": self.seed,
                "epochs": phase.epochs,
                "val": phase.val,
                "test": phase.test,
            },
        )
        return phase

    def _prepared(self) -> _Prepared:
        """The molecules that rdkit reads, their targets in units of the training molecules'."""
        kept, descriptors, fingerprint = self._targets()
        if kept.numel() < len(self.graphs):
            self.console.print(
                f"{len(self.graphs) - kept.numel()} molecules of {self.dataset} are left out: "
                "rdkit does not read them",
                highlight=False,
            )
        held_out = self.settings.held_out
        split = random_graph_split(kept.numel(), self.seed, (1 - 2 * held_out, held_out))
        if min(part.numel() for part in split) < 1:
            raise ValueError(
                f"held_out {held_out:g} of {kept.numel()} molecules leaves none to train on or to "
                "evaluate"
            )
        seen = descriptors[split.train].double()
        told = ~seen.isnan()
        count = told.sum(0).clamp(min=1)
        mean = seen.nan_to_num().sum(0) / count
        deviation = (((seen - mean) ** 2).nan_to_num().sum(0) / count).sqrt()
        deviation = torch.where(deviation > 0, deviation, 1.0)
        clip = self.settings.targets.clip
        scaled = ((descriptors.double() - mean) / deviation).clamp(-clip, clip).float()
        y = torch.cat((scaled, fingerprint.float()), dim=1)
        return _Prepared(_with_targets(self.graphs, kept, y), split)

    def _targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which molecules are kept, and their targets: from data/targets.safetensors if there."""
        targets = self.settings.targets
        path = self.folder / "data/targets.safetensors"
        made_by = _files.as_json(
            {
                "format": TARGETS_FORMAT,
                "rdkit": _files.version("rdkit"),
                "smiles": _files.digest_of("\n".join(self.smiles).encode()),
                "bits": targets.bits,
                "radius": targets.radius,
                "on_bad": self.settings.on_bad,
                "descriptors": DESCRIPTORS,
            }
        )
        found = _files.read(path)
        if found is None or found[1].get("made_by") != made_by:
            made = molecule_targets(
                self.smiles,
                bits=targets.bits,
                radius=targets.radius,
                on_bad=self.settings.on_bad,
            )
            tensors = {name: getattr(made, name) for name in ("kept", "descriptors", "fingerprint")}
            _files.write(path, tensors, {"made_by": made_by})
        else:
            tensors = found[0]
        return tensors["kept"], tensors["descriptors"], tensors["fingerprint"]

    def _backbone(self, graphs: PackedGraphs) -> nn.Module:
        network: nn.Module = MODELS[self.settings.model][0](
            graphs.node_categories,
            graphs.num_tasks,
            self.settings.network,
            edge_features=graphs.edge_categories,
            attend=functools.partial(ops.ragged_attention, backend=self.backend),
        )
        return network


def _with_targets(graphs: PackedGraphs, kept: Tensor, y: Tensor) -> PackedGraphs:
    """Some graphs with new labels."""
    batch = graphs.batch(kept)
    edges = graphs.edge_ptr.diff()[kept]
    return PackedGraphs(
        batch.x,
        batch.edge_index,
        batch.ptr,
        torch.nn.functional.pad(edges.cumsum(0), (1, 0)),
        y=y,
        edge_attr=batch.edge_attr,
        node_categories=graphs.node_categories,
        edge_categories=graphs.edge_categories,
    )
