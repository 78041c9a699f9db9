"""Exphormer: its graph, its layers, and what a run leaves."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch_geometric.nn import GCNConv

import gtkern
from gtkern.data import minesweeper
from gtkern.methods.exphormer.run import ExphormerRun, ExphormerTask, build_graph
from gtkern.methods.exphormer.settings import Settings, Training
from gtkern.methods.node_settings import Expander
from gtkern.models.exphormer import Exphormer, augment, with_virtual_nodes
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.run import RunFolder, read_summary

NODES = 144


CONFIGS = sorted((pathlib.Path(gtkern.__file__).parent / "configs/exphormer").glob("*.yaml"))


def settings(**changes: Any) -> Settings:
    training = Training(epochs=3, lr=0.02, layers=2, width=8, heads=2, warmup_epochs=0)
    return Settings(
        dataset="minesweeper",
        metric="roc_auc",
        expander=Expander(degree=2),
        training=dataclasses.replace(training, **changes),
    )


def train(path: pathlib.Path, chosen: Settings | None = None, *, resume: bool = False) -> Any:
    method = ExphormerRun(
        chosen or settings(),
        minesweeper(0, rows=12),
        RunFolder(path),
        console=Console(quiet=True),
    )
    return method.run(resume=resume)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"local": "gcn"},
        {"local": "gcn", "graph_edges": False},
        {"virtual_nodes": 2},
        {"local": "gcn", "virtual_nodes": 1, "norm": "graph"},
    ],
)
def test_a_run_learns_and_leaves_its_files(tmp_path: pathlib.Path, changes: dict[str, Any]) -> None:
    train(tmp_path, settings(**changes))
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "checkpoints/training.ckpt",
        "checkpoints/training.json",
        "checkpoints/training.safetensors",
        "metrics.csv",
        "plots/curves.png",
        "summary.json",
    }
    summary = read_summary(tmp_path / "summary.json")
    assert summary["method"] == "exphormer"
    (phase,) = summary["phases"]
    assert phase["epochs"] == 3
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    losses = [float(row[rows[0].index("loss")]) for row in rows[1:]]
    assert losses[-1] < losses[0]


def test_a_finished_run_is_not_trained_again(tmp_path: pathlib.Path) -> None:
    first = train(tmp_path)
    again = train(tmp_path, resume=True)
    assert dataclasses.asdict(again.phases[0]) == dataclasses.asdict(first.phases[0])


def test_two_runs_are_equal(tmp_path: pathlib.Path) -> None:
    weights = []
    for name in ("a", "b"):
        train(tmp_path / name, settings(local="gcn"))
        weights.append(load_file(tmp_path / name / "checkpoints/training.safetensors"))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_a_new_run_forgets_the_old_one(tmp_path: pathlib.Path) -> None:
    train(tmp_path)
    with pytest.raises(UserError, match="training diverged"):
        train(tmp_path, settings(lr=1e38, clip_grad_norm=0.0))
    assert not (tmp_path / "summary.json").exists()


def test_without_graph_edges_attention_sees_expander_and_self_loops() -> None:
    graph = build_graph(settings(graph_edges=False), minesweeper(0, rows=12))
    kinds = graph.edge_type()
    assert kinds is not None
    assert torch.bincount(kinds).tolist() == [0, 4 * NODES, NODES]


def test_virtual_nodes_are_joined_to_every_node() -> None:
    graph = augment(torch.tensor([[0, 1], [1, 0]]), 4, expander_degree=0)
    joined = with_virtual_nodes(graph, 2)
    edges, kinds = joined.edge_index(), joined.edge_type()
    assert kinds is not None
    found = {(*pair, kind) for pair, kind in zip(edges.T.tolist(), kinds.tolist(), strict=True)}
    own = {(0, 1, 0), (1, 0, 0), *((node, node, 2) for node in range(6))}
    new = {(node, hub, 3) for node in range(4) for hub in (4, 5)}
    assert found == own | new | {(hub, node, 4) for node, hub, _ in new}


def test_a_block_with_local_layers_is_that_of_graphgps() -> None:
    torch.manual_seed(0)
    data = minesweeper(0, rows=12)
    graph = augment(data.edge_index, NODES, expander_degree=2)
    network = Exphormer(7, 2, width=8, layers=1, local=lambda width: GCNConv(width, width)).eval()
    found = network(data.x, graph, data.edge_index)
    assert network.local is not None
    assert network.local_norms is not None
    x, block = network.encoder(data.x), network.blocks[0]
    attended = network.attention[0](x, graph, network.type_embedding.weight)
    near = network.local[0](x, data.edge_index)
    y = network.local_norms[0](x + near) + block.attention_norm(x + attended)
    y = block.output_norm(y + block.narrow(block.widen(y).relu()))
    torch.testing.assert_close(found, network.head(y))


def test_virtual_nodes_have_no_output() -> None:
    chosen = settings(virtual_nodes=3)
    data = minesweeper(0, rows=12)
    task = ExphormerTask(chosen, data, build_graph(chosen, data))
    assert task.network(task.x, task.graph, None).shape == (NODES, 2)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_settings_of_a_data_set_are_valid(path: pathlib.Path) -> None:
    assert settings_of.read(Settings, settings_of.load(path)).dataset == path.stem
