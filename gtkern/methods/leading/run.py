"""A run of LEADING or of one of its baselines, from texts to predictions."""

from __future__ import annotations

import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from gtkern import _processes
from gtkern.data.text_graph import TextGraph, check_text_graph
from gtkern.methods.leading import inference
from gtkern.methods.leading.bank import MemoryBank
from gtkern.methods.leading.blocks import Blocks
from gtkern.methods.leading.language_model import LanguageModel
from gtkern.methods.leading.lazy import LazyMemory
from gtkern.methods.leading.network import GraphPart, TextGraphNetwork
from gtkern.methods.leading.settings import LeadingSettings
from gtkern.methods.leading.task import EndToEndTask, FeatureTask
from gtkern.methods.leading.tfidf import tfidf
from gtkern.methods.leading.tokens import TokenizedTexts, tokenize
from gtkern.training import memory, metrics, plots
from gtkern.training.errors import UserError
from gtkern.training.phase_run import PhaseRun
from gtkern.training.run import Phase, RunFolder, Summary

__all__ = ["FEATURES", "REFIT", "TRAINING", "LeadingRun"]

FEATURES = "features"
TRAINING = "training"
REFIT = "refit"
INFERENCE = "checkpoints/inference"
"""Folder of what the tuned language model says, as far as it said it."""
BANK = "checkpoints/bank"
"""Folder of a bank in a file, and of the copies that checkpoints name."""


class LeadingRun(PhaseRun):
    """Train on a graph of texts, and predict the class of every node.

    Args:
        settings: of the run.
        data: a TextGraph.
        folder: where to leave everything.
        cache: folder of what runs on the same texts share: tokens, and what the language model
            said before it was trained. Default: in the run's folder.
        device, backend, dataset, command, console: see PhaseRun.

    Raises:
        TypeError, ValueError: the data, or the folder of the language model, do not fit.
        UserError: too many processes.
    """

    def __init__(
        self,
        settings: LeadingSettings,
        data: Any,
        folder: RunFolder,
        *,
        cache: pathlib.Path | None = None,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        dataset: str | None = None,
        command: str = "",
        console: Console | None = None,
    ) -> None:
        inference.check_libraries(settings.train)
        self.data: TextGraph = check_text_graph(data)
        super().__init__(
            folder,
            method=settings.train,
            dataset=dataset or self.data.name,
            seed=settings.seed,
            metric="accuracy",
            device=device,
            backend=backend,
            command=command,
            console=console,
        )
        if settings.train == "language-model":
            settings = replace(settings, propagation=replace(settings.propagation, kind="none"))
        if _processes.count() > settings.training.batch_size:
            raise UserError(
                f"training.batch_size {settings.training.batch_size} must be at least the "
                f"{_processes.count()} processes"
            )
        self.settings = settings
        self.cache = cache or folder.path / "cache"
        self.language_model: LanguageModel | None = None
        if settings.train != "tfidf":
            self.language_model = inference.open_language_model(settings, self.data.texts)
        neighbors = settings.neighbors
        self.blocks = Blocks(
            self.data.edge_index,
            self.data.num_nodes,
            fanout=neighbors.fanout,
            hops=neighbors.hops,
            unlabelled=settings.training.unlabelled,
            seed=settings.seed,
        )
        # what cannot run should not start
        self._graph_part(1)(torch.zeros(self.data.num_nodes, 1), self.blocks.whole())

    def run(self, *, resume: bool = False) -> Summary:
        """Train, predict and write everything.

        Args:
            resume: go on from what is in the folder.

        Raises:
            InterruptedRunError: the user stopped; `resume` goes on. UserError: training diverged.
        """
        if not resume:
            self.clean()
            if self.first:
                for folder in (INFERENCE, BANK):
                    shutil.rmtree(self.folder / folder, ignore_errors=True)
        phases = []
        graph_part = None
        if self.settings.warm_start or self.language_model is None or self._is_cascaded:
            phase, graph_part = self._train_features(resume)
            phases.append(phase)
        if self.language_model is not None and not self._is_cascaded:
            phases += self._train_together(graph_part, resume)
        if self.first:
            with self.folder.replacing("plots/curves.png") as part:
                plots.curves(part, self.rows, self.best, self.metric)
        frozen = 0
        if self._is_cascaded and self.language_model is not None:
            frozen = sum(p.numel() for p in self.language_model.parameters())
        return self.summarize(phases, frozen=frozen)

    @property
    def _is_cascaded(self) -> bool:
        return self.settings.train == "cascaded"

    def _graph_part(self, features: int) -> GraphPart:
        return GraphPart(
            features, self.data.num_classes, self.settings.propagation, backend=self.backend
        )

    def _tokens(self, model: LanguageModel) -> TokenizedTexts:
        with self.progress("tokens") as progress:
            if not self.first:
                _processes.barrier()
            tokens = tokenize(
                self.data.texts,
                model.tokenizer,
                max_tokens=min(self.settings.encoder.max_tokens, model.max_tokens),
                folder=self.cache / "tokens",
                progress=progress,
            )
            if self.first:
                _processes.barrier()
        return tokens

    def _features(self) -> Tensor:
        """What the graph part is first trained on: float32 [N, features]."""
        if self.language_model is None:
            return tfidf(self.data.texts)
        tokens = self._tokens(self.language_model)
        with self.progress("encoding") as progress:
            return inference.encode_all(
                self.language_model.to(self.device),
                tokens,
                self.settings,
                self.cache / "features",
                progress=progress,
            )

    def _train_features(self, resume: bool) -> tuple[Phase, GraphPart]:
        """The graph part on what the language model says as it is."""
        began = time.perf_counter()
        torch.manual_seed(self.settings.seed)
        x = self._features()
        encoded = time.perf_counter() - began
        graph_part = self._graph_part(x.size(1))
        graph_part.standardize(x)
        phase = self._fitted(FEATURES, graph_part, x, resume, {"encode_seconds": encoded})
        if self.language_model is None or self._is_cascaded:
            self._write(self._logits(graph_part, x))
        return phase, graph_part

    def _fitted(
        self, name: str, graph_part: GraphPart, x: Tensor, resume: bool, details: dict[str, Any]
    ) -> Phase:
        """A phase in which the graph part alone learns, on x [N, features]; it ends at its best."""
        phase = self.finished(name, self.folder) if resume else None
        if phase is None:
            memory.reset_peak(self.device)
            before = memory.resident_bytes(self.device)
            began = time.perf_counter()
            task = FeatureTask(graph_part, x, self.data, self.blocks.whole(), self.settings)
            earlier = self.fit(name, task, resume)
            details = {**details, "resident_bytes_before": before}
            phase = self.finish(name, task, earlier + time.perf_counter() - began, details)
        inference.read_weights(graph_part, self.folder / f"checkpoints/{name}.safetensors")
        return phase

    def _train_together(self, graph_part: GraphPart | None, resume: bool) -> list[Phase]:
        """Language model and graph part; then the graph part on what it became."""
        model, settings = self.language_model, self.settings
        assert model is not None
        tokens = self._tokens(model)
        torch.manual_seed(settings.seed)
        network = TextGraphNetwork(model, graph_part or self._graph_part(model.width))
        phase = self.finished(TRAINING, self.folder) if resume else None
        x = None
        if phase is None:
            phase, x = self._tune(network, tokens, resume, warm=graph_part is not None)
        phases = [phase]
        if settings.refit:
            if x is None:
                path = self.folder / f"checkpoints/{TRAINING}.safetensors"
                inference.read_weights(network, path, strict=False)
                x = self._said(network, tokens)
            phases.append(self._fitted(REFIT, network.graph_part, x, resume, {}))
            self._write(self._logits(network.graph_part, x))
        if self.first:
            inference.save(network, self.folder / "model", settings, self.data, phases[-1])
            # they are of no use to weights of another time
            for folder in (INFERENCE, BANK):
                shutil.rmtree(self.folder / folder, ignore_errors=True)
        return phases

    def _tune(
        self, network: TextGraphNetwork, tokens: TokenizedTexts, resume: bool, *, warm: bool
    ) -> tuple[Phase, Tensor]:
        """Train everything together; also gives what the best weights say of all nodes."""
        settings = self.settings
        memory.reset_peak(self.device)
        before = memory.resident_bytes(self.device)
        began = time.perf_counter()
        bank, lazy = self._memories(tokens, network.language_model.width)
        if bank is not None and warm:
            self._fill(bank, lazy, network.graph_part)
        task = EndToEndTask(network, tokens, self.data, self.blocks, settings, bank=bank, lazy=lazy)
        earlier = self.fit(TRAINING, task, resume, accumulate=settings.training.accumulate)
        assert task.best is not None
        trained = time.perf_counter()
        details: dict[str, Any] = {"resident_bytes_before": before, **task.figures()}
        network.load_state_dict(task.best.weights, strict=False)
        x = self._said(network, tokens)
        val, test = self._write(self._logits(network.graph_part, x))
        details["predict_seconds"] = time.perf_counter() - trained
        details["val_in_training"] = task.best.val
        task.best = replace(task.best, val=val, test=test)
        phase = self.finish(TRAINING, task, earlier + time.perf_counter() - began, details)
        return phase, x

    def _said(self, network: TextGraphNetwork, tokens: TokenizedTexts) -> Tensor:
        """What the tuned language model says of all nodes: float32 [N, width]."""
        with self.progress("predicting") as progress:
            return inference.encode_all(
                network.language_model.to(self.device),
                tokens,
                self.settings,
                self.folder / INFERENCE,
                progress=progress,
            )

    def _logits(self, graph_part: GraphPart, x: Tensor) -> Tensor:
        """Of all nodes [N, classes], by the whole graph, to the tolerance."""
        with torch.no_grad():
            whole = self.blocks.whole().to(self.device)
            logits: Tensor = graph_part.to(self.device).eval()(x.to(self.device), whole)
        graph_part.train()
        return logits

    def _memories(
        self, tokens: TokenizedTexts, width: int
    ) -> tuple[MemoryBank | None, LazyMemory | None]:
        settings = self.settings
        identity = tokens.digest
        bank = lazy = None
        if settings.train == "leading":
            path = None
            if settings.neighbors.mapped:
                path = self.folder / BANK / f"rank-{_processes.rank()}"
                path.unlink(missing_ok=True)
            bank = MemoryBank(
                self.data.num_nodes,
                width,
                dtype=settings.neighbors.bank,
                path=path,
                identity=identity,
            )
        propagation = settings.propagation
        if settings.train == "leading" and propagation.kind == "implicit" and propagation.sweeps:
            lazy = LazyMemory(
                self.data.num_nodes,
                propagation.width,
                beta=propagation.beta,
                theta=propagation.theta,
                identity=identity,
            )
        return bank, lazy

    def _fill(self, bank: MemoryBank, lazy: LazyMemory | None, graph_part: GraphPart) -> None:
        """Begin with what is known of all nodes."""
        x = self._features()
        nodes = torch.arange(self.data.num_nodes)
        bank.write(nodes, x, step=0)
        if lazy is not None:
            with torch.no_grad():
                z = graph_part.cpu().eval().solution(x, self.blocks.whole())
            graph_part.train()
            lazy.solutions.write(nodes, z, step=0)

    def _write(self, logits: Tensor) -> tuple[float, float]:
        """Write the predictions; gives the metric of validation and test nodes."""
        logits = logits.cpu()
        if self.first:
            with self.folder.replacing("predictions.parquet") as part:
                inference.write_predictions(part, self.data, logits)
        val, test = (
            metrics.evaluate(self.metric, logits[mask], self.data.y[mask])
            for mask in (self.data.val_mask, self.data.test_mask)
        )
        return val, test

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar on a terminal; what is given is told how many are done, and of how many."""
        bar = Progress(console=self.console, disable=not (self.console.is_terminal and self.first))
        with bar:
            task = bar.add_task(f"[bold]{title}", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
