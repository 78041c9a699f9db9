"""A run of Spexphormer, from data to summary."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from gtkern import _processes, ops, peers
from gtkern.data.node import NodeData
from gtkern.graph import Graph
from gtkern.methods.spexphormer.settings import Settings, temperature_at
from gtkern.methods.spexphormer.tasks import SampledTask, ScoreTask
from gtkern.models.exphormer import EDGE_TYPES, augment
from gtkern.training import memory, plots
from gtkern.training.errors import UserError
from gtkern.training.fit import fit
from gtkern.training.node import NodeTask
from gtkern.training.node_run import NodeRun
from gtkern.training.run import Comparison, Phase, RunFolder, Summary

__all__ = ["Spexphormer", "build_graph", "check_backend"]

NAME = "spexphormer"
COMPARED_EPOCHS = 4


def build_graph(settings: Settings, data: NodeData) -> Graph:
    """The data's graph with expander edges and self loops."""
    return augment(
        data.edge_index,
        data.x.size(0),
        expander_degree=settings.expander.degree,
        algorithm=settings.expander.algorithm,
        seed=settings.seed,
    )


def check_backend(backend: str, device: torch.device) -> None:
    """Raise ValueError or NotImplementedError unless all ops of the method run on `backend`."""
    q = torch.zeros(1, 1, 1, device=device)
    none = torch.zeros(2, 0, dtype=torch.int64, device=device)
    ops.sparse_attention(q, q, q, Graph.from_edge_index(none, 1), backend=backend)
    neighbors = torch.zeros(1, 1, dtype=torch.int32, device=device)
    ops.sampled_attention(q, q, q, neighbors, backend=backend)


class Spexphormer(NodeRun):
    """A run of the method, from data to summary.

    Deviations from the paper and its code: phase 1 starts with a bias towards the graph's own edges
    (phase1.graph_bias; 0 is the authors' random start, from which some seeds never attend to them
    in some layers); for more than one head the score is the formula's (the released code mixes
    heads and neighbours); the temperature of the extracted scores is that of the best epoch; every
    run samples by the scores of its own seed (the released code: of seed 0); two classes have two
    logits (there: one); a batch of evaluation holds validation and test nodes together.

    Args:
        settings: what to run.
        data: NodeData, or a PyG `Data` with the same attributes.
        folder: where to leave it.
        device: where to train.
        backend: of the ops.
        command: for the summary.
        scores_of: folder of a run with the same data, seed, expander and phase 1, whose phase 1 is
            taken instead of training it again; None: this run's own.
        console: for progress and remarks.

    Raises:
        TypeError, ValueError: `data` does not fit. NotImplementedError: the backend cannot run.
    """

    def __init__(
        self,
        settings: Settings,
        data: Any,
        folder: RunFolder,
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        dataset: str | None = None,
        command: str = "",
        scores_of: RunFolder | None = None,
        console: Console | None = None,
    ) -> None:
        super().__init__(
            data,
            folder,
            method=NAME,
            dataset=dataset or settings.dataset,
            seed=settings.seed,
            metric=settings.metric,
            device=device,
            backend=backend,
            command=command,
            console=console,
        )
        self.settings = settings
        self.scores_of = scores_of or folder
        check_backend(backend, self.device)

    def run(
        self, *, resume: bool = False, compare: bool = False, only_scores: bool = False
    ) -> Summary:
        """Train both phases and write everything.

        Args:
            resume: go on from the checkpoints in the folder.
            compare: then time a few epochs on plain PyG and torch ops.
            only_scores: end after phase 1.

        Raises:
            InterruptedRunError: the user stopped; `resume` goes on. LostProcessError: another
            process of the run ended; likewise. UserError: training diverged.
        """
        with self.together():
            return self._run(resume, compare, only_scores)

    def _run(self, resume: bool, compare: bool, only_scores: bool) -> Summary:
        if compare and _processes.count() > 1:
            raise UserError("the comparison is of one process")
        if not resume and self.first:
            self.clean()
        graph = build_graph(self.settings, self.data)
        phases = [self._phase1(graph, resume)]
        # the first process has written the scores, and all of them map the same file
        _processes.barrier()
        scores = torch.from_numpy(np.load(self.scores_of / "scores/scores.npy", mmap_mode="c"))
        if scores.size(1) != graph.num_edges:
            raise UserError(
                f"cannot resume: the scores in {self.scores_of.path} are of "
                f"{scores.size(1):,} edges, and this graph has {graph.num_edges:,}"
            )
        if not only_scores:
            phases.append(self._phase2(graph, scores, resume))
        if self.first:
            self._plot(graph, scores, phases)
        comparison = self._compare(graph, scores) if compare else []
        return self.summarize(phases, comparison)

    def _phase1(self, graph: Graph, resume: bool) -> Phase:
        taken = self.scores_of is not self.folder
        done = self.finished("phase1", self.scores_of) if resume or taken else None
        if done is not None:
            return done
        if taken:
            raise UserError(f"there is no finished phase 1 in {self.scores_of.path}")
        memory.reset_peak(self.device)
        before = memory.resident_bytes(self.device)
        began = time.perf_counter()
        torch.manual_seed(self.settings.seed)
        attend = functools.partial(ops.sparse_attention, backend=self.backend)
        task = ScoreTask(self.settings, self.data, graph, attend=attend)
        earlier = self.fit("phase1", task, resume)
        assert task.best is not None
        if self.first:
            shape = (self.settings.phase1.layers, graph.num_edges)
            self.folder.write_arrays("scores/scores.npy", shape, task.best_scores())
            self.folder.write_array("scores/row_ptr.npy", graph.csr.ptr.numpy())
            self.folder.write_array("scores/source.npy", graph.csr.index.numpy())
            self.folder.write_array("scores/edge_type.npy", graph.csr.edge_type.numpy())
        else:
            # compute them and send them to the first
            for _ in task.best_scores():
                pass
        details = {
            "temperature": temperature_at(self.settings.phase1, task.best.epoch),
            "resident_bytes_before": before,
        }
        seconds = earlier + time.perf_counter() - began
        return self.finish("phase1", task, seconds, details)

    def _phase2(self, graph: Graph, scores: Tensor, resume: bool) -> Phase:
        done = self.finished("phase2", self.folder) if resume else None
        if done is not None:
            return done
        memory.reset_peak(self.device)
        before = memory.resident_bytes(self.device)
        began = time.perf_counter()
        torch.manual_seed(self.settings.seed)
        attend = functools.partial(ops.sampled_attention, backend=self.backend)
        layers = self.settings.phase2.layers
        task = SampledTask(self.settings, self.data, graph, scores[:layers], attend=attend)
        earlier = self.fit("phase2", task, resume)
        assert task.best is not None
        # a run resumed after its last epoch has drawn nothing yet
        task.sample(self.settings.phase2.epochs - 1)
        nodes, loops = graph.num_dst_nodes, self.data.x.size(0)
        sampled = [nodes * k / (graph.num_edges - loops) for k in self.settings.phase2.neighbors]
        kept = task.kept()
        details = {
            "edges_kept_by_layer": [min(1.0, share) for share in sampled],
            "distinct_edges_by_layer_and_type": kept.tolist(),
            "edge_types": list(EDGE_TYPES),
            "resident_bytes_before": before,
        }
        seconds = earlier + time.perf_counter() - began
        kept_share = statistics.fmean(sampled)
        return self.finish("phase2", task, seconds, details, edges_kept=kept_share)

    def _compare(self, graph: Graph, scores: Tensor) -> list[Comparison]:
        """Time the first epochs of both phases on our ops and on plain PyG, torch and NumPy."""
        settings = replace(
            self.settings,
            phase1=replace(self.settings.phase1, epochs=COMPARED_EPOCHS),
            phase2=replace(self.settings.phase2, epochs=COMPARED_EPOCHS),
        )
        scores = scores[: settings.phase2.layers]
        ours = functools.partial(ops.sparse_attention, backend=self.backend)
        ours_sampled = functools.partial(ops.sampled_attention, backend=self.backend)
        on_device = graph.to(self.device)
        makers: dict[str, tuple[Callable[[], NodeTask], Callable[[], NodeTask]]] = {
            "phase1": (
                lambda: ScoreTask(settings, self.data, graph, attend=ours),
                lambda: ScoreTask(
                    settings, self.data, graph, attend=peers.sparse_attention_on(on_device)
                ),
            ),
            "phase2": (
                lambda: SampledTask(settings, self.data, graph, scores, attend=ours_sampled),
                lambda: SampledTask(
                    settings,
                    self.data,
                    graph,
                    scores,
                    attend=peers.sampled_attention,
                    sample=_sample_as_peer,
                ),
            ),
        }
        comparisons = []
        for phase, (make, make_peer) in makers.items():
            seconds, peak, loss = self._measure(phase, make)
            peer_seconds, peer_peak, peer_loss = self._measure(f"{phase} on PyG", make_peer)
            comparisons.append(
                Comparison(phase, "PyG", seconds, peer_seconds, peak, peer_peak, loss, peer_loss)
            )
        return comparisons

    def _measure(self, title: str, make: Callable[[], NodeTask]) -> tuple[float, int, float]:
        """Seconds per epoch, peak memory above the start, and loss of the first epoch."""
        torch.manual_seed(self.settings.seed)
        task = make()
        gc.collect()
        memory.reset_peak(self.device)
        start = memory.resident_bytes(self.device)
        fit(task, title=title, device=self.device, console=self.console)
        peak = memory.peak_bytes(self.device) - start
        seconds = statistics.median(row["seconds"] for row in task.history[1:])
        return seconds, peak, task.history[0]["loss"]

    def _plot(self, graph: Graph, scores: Tensor, phases: Sequence[Phase]) -> None:
        with self.folder.replacing("plots/curves.png") as part:
            plots.curves(part, self.rows, self.best, self.metric)
        with self.folder.replacing("plots/scores.png") as part:
            plots.score_distribution(part, scores.numpy(), graph.csr.edge_type.numpy(), EDGE_TYPES)
        if "distinct_edges_by_layer_and_type" not in phases[-1].details:
            return
        with self.folder.replacing("plots/kept_edges.png") as part:
            kept = np.array(phases[-1].details["distinct_edges_by_layer_and_type"])
            plots.kept_edges(part, kept, graph.num_edges, EDGE_TYPES)


def _sample_as_peer(*arguments: Any, epoch: int, **options: Any) -> Sequence[ops.Neighbors]:
    """NumPy's samples; in the first epoch, which is not timed, ours, so that losses are equal."""
    sample = peers.sample_neighbors if epoch else ops.sample_neighbors
    return sample(*arguments, epoch=epoch, **options)
