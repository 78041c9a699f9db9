"""Trains an epoch of every case and saves what came of it; torchrun starts it several times.

python processes_worker.py FOLDER: each process writes FOLDER/RANK.pt.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import torch
from rich.console import Console
from text_rings import rings

from gtkern import _processes
from gtkern.data import minesweeper
from gtkern.data.node import NodeData
from gtkern.graph import Graph
from gtkern.methods.leading import LanguageModel, MemoryBank, tokenize, train_tokenizer
from gtkern.methods.leading.blocks import Blocks
from gtkern.methods.leading.lazy import LazyMemory
from gtkern.methods.leading.network import GraphPart, TextGraphNetwork
from gtkern.methods.leading.settings import EndToEnd, FeatureTraining, LeadingSettings
from gtkern.methods.leading.task import EndToEndTask
from gtkern.methods.node_settings import Expander
from gtkern.methods.spexphormer.run import build_graph
from gtkern.methods.spexphormer.settings import Phase1, Phase2, Settings
from gtkern.methods.spexphormer.tasks import SampledTask, ScoreTask
from gtkern.training.fit import fit, join_processes
from gtkern.training.task import Task

TINY = 1e-7
"""Adam makes steps of this size of gradients that are rounding alone, and metrics must agree."""

SETTINGS = Settings(
    dataset="minesweeper",
    metric="roc_auc",
    expander=Expander(degree=2),
    phase1=Phase1(epochs=1, lr=TINY, layers=2, warmup_epochs=0, clip_grad_norm=0),
    phase2=Phase2(
        epochs=1,
        lr=TINY,
        layers=2,
        width=8,
        heads=2,
        neighbors=(4, 3),
        dropout=0,
        warmup_epochs=0,
        clip_grad_norm=0,
    ),
)


def two_islands() -> NodeData:
    """Two fields without an edge between them, three tasks, labels missing mostly on the second."""
    first, second = minesweeper(0, rows=12), minesweeper(1, rows=12)
    nodes = first.x.size(0)
    y = torch.cat((first.y, second.y))
    tasks = torch.stack((y, 1 - y, (torch.arange(2 * nodes) % 3 == 0).long()), dim=1).float()
    tasks[:5, 0] = float("nan")
    tasks[nodes:, 1][::2] = float("nan")
    train = torch.zeros(2 * nodes, dtype=torch.bool)
    # the first share is the first field's, and has one node more
    train[:40] = train[nodes : nodes + 39] = True
    return NodeData(
        torch.cat((first.x, second.x)),
        tasks,
        torch.cat((first.edge_index, second.edge_index + nodes), dim=1),
        train,
        torch.arange(2 * nodes) % 4 == 1,
        torch.arange(2 * nodes) % 4 == 3,
    )


def sampled(settings: Settings, data: NodeData) -> SampledTask:
    settings = dataclasses.replace(settings, expander=Expander(degree=0))
    graph = build_graph(settings, data)
    scores = torch.rand(2, graph.num_edges, generator=torch.Generator().manual_seed(3))
    return SampledTask(settings, data, graph, scores)


def leading() -> EndToEndTask:
    """Texts, two of a batch's five targets in one process and three in the other."""
    data = rings()
    tokenizer = train_tokenizer(data.texts)
    model = LanguageModel.small(tokenizer, width=16, layers=1, heads=2, dropout=0.0)
    settings = LeadingSettings(
        dataset="synthetic",
        features=FeatureTraining(epochs=1, lr=TINY),
        training=EndToEnd(
            epochs=2, lr=TINY, encoder_lr=TINY, batch_size=5, warmup_epochs=0, clip_grad_norm=0
        ),
    )
    part = GraphPart(16, 2, dataclasses.replace(settings.propagation, width=8))
    return EndToEndTask(
        TextGraphNetwork(model, part),
        tokenize(data.texts, tokenizer, max_tokens=8),
        data,
        Blocks(data.edge_index, data.num_nodes, fanout=2, hops=1, unlabelled=2),
        settings,
        bank=MemoryBank(data.num_nodes, 16, dtype="float32", identity="rings"),
        lazy=LazyMemory(data.num_nodes, 8, beta=0.5, theta=0.5, identity="rings"),
    )


def cases() -> dict[str, Task]:
    """The tasks, each with the same weights in every process."""
    phase1 = dataclasses.replace(SETTINGS.phase1, norm="batch")
    phase2 = dataclasses.replace(SETTINGS.phase2, evaluation="layers")
    field = minesweeper(0, rows=12)
    graph: Graph = build_graph(SETTINGS, field)
    islands = two_islands()
    makers: dict[str, Any] = {
        "phase 1": lambda: ScoreTask(SETTINGS, field, graph),
        "phase 1, BatchNorm": lambda: ScoreTask(
            dataclasses.replace(SETTINGS, phase1=phase1), field, graph
        ),
        "phase 2": lambda: sampled(SETTINGS, islands),
        "phase 2, evaluation by layers": lambda: sampled(
            dataclasses.replace(SETTINGS, phase2=phase2), islands
        ),
        "leading": leading,
    }
    made = {}
    for name, make in makers.items():
        torch.manual_seed(1)
        made[name] = make()
    return made


def train(task: Task) -> dict[str, Any]:
    """Gradients of the first step by name, the row of the epoch, and what else must agree."""
    first: dict[str, torch.Tensor] = {}

    def keep() -> None:
        if not first:
            for name, parameter in task.network.named_parameters():
                assert parameter.grad is not None
                first[name] = parameter.grad.clone()

    task.on_after_backward = keep  # type: ignore[method-assign]
    fit(task, title="", device=torch.device("cpu"), console=Console(quiet=True))
    result = {
        "gradients": first,
        "row": {
            key: value for key, value in task.history[0].items() if not key.endswith("seconds")
        },
        "norms": {
            name: value
            for name, value in task.network.state_dict().items()
            if name.endswith(("running_mean", "running_var"))
        },
    }
    if isinstance(task, ScoreTask):
        result["scores"] = [torch.from_numpy(piece) for piece in task.best_scores()]
    if isinstance(task, EndToEndTask):
        assert task.bank is not None
        assert task.lazy is not None
        result["memories"] = [
            bank.state_dict()["values"]
            for bank in (task.bank, task.lazy.solutions, task.lazy.adjoints)
        ]
    return result


def main() -> None:
    join_processes("cpu")
    results = {name: train(task) for name, task in cases().items()}
    torch.save(results, pathlib.Path(sys.argv[1]) / f"{_processes.rank()}.pt")


if __name__ == "__main__":
    main()
