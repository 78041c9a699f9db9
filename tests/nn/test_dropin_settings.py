"""Twins where models of PyG live: edge types, batches of neighbours, several processes."""

from __future__ import annotations

import copy
import datetime
import pathlib
import socket
import time

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.nn import GATConv, TransformerConv, to_hetero
from torch_geometric.utils import k_hop_subgraph

import gtkern
from gtkern.nn.dropin.message_passing import MessagePassingTwin
from gtkern.testing import random_edges
from tests.nn.twins import is_twin

pytestmark = pytest.mark.usefixtures("of_any_size")

WIDTH, NODES = 6, 30
PATIENCE = 60.0
"""Seconds after which processes that wait for each other fail a test."""
EDGES = random_edges("uniform", NODES, 120, seed=4)


class Network(nn.Module):
    def __init__(self, channels: int | tuple[int, int]) -> None:
        super().__init__()
        self.first = TransformerConv(channels, 4, heads=2)
        self.second = GATConv((8, 8), 3, add_self_loops=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, edge_index).relu(), edge_index)
        return out


def two_types() -> HeteroData:
    data = HeteroData()
    counts = {"paper": 9, "author": 5}
    for kind, count in counts.items():
        data[kind].x = torch.randn(count, WIDTH)
    for source, destination in (("paper", "author"), ("author", "paper"), ("paper", "paper")):
        ends = [torch.randint(counts[kind], (20,)) for kind in (source, destination)]
        data[source, "to", destination].edge_index = torch.stack(ends)
    return data


@pytest.mark.parametrize("first", ["to_hetero", "accelerate"])
def test_edge_types(first: str) -> None:
    data, model = two_types(), Network((WIDTH, WIDTH))
    plain = to_hetero(copy.deepcopy(model), data.metadata())
    if first == "to_hetero":
        twin = copy.deepcopy(plain)
        gtkern.accelerate(twin)
    else:
        gtkern.accelerate(model)
        twin = to_hetero(model, data.metadata())
        twin.load_state_dict(plain.state_dict())
    assert sum(is_twin(layer) for layer in twin.modules()) == 6
    expected, actual = (each(data.x_dict, data.edge_index_dict) for each in (plain, twin))
    for kind, value in expected.items():
        torch.testing.assert_close(actual[kind], value, rtol=1e-5, atol=1e-6)
    for total in (expected, actual):
        sum(value.square().sum() for value in total.values()).backward()
    gradients = dict(twin.named_parameters())
    for name, parameter in plain.named_parameters():
        # gradients that cancel, such as that of the keys' bias, are rounding and nothing else
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_batches_of_neighbours() -> None:
    """As NeighborLoader gives them: in every batch new nodes, numbers and edges."""
    model = Network(WIDTH)
    twin = copy.deepcopy(model)
    gtkern.accelerate(twin)
    x = torch.randn(NODES, WIDTH)
    for seed in range(6):
        seeds = torch.arange(5) + 5 * seed
        nodes, edge_index, _, _ = k_hop_subgraph(seeds, 2, EDGES, relabel_nodes=True)
        expected, actual = (each(x[nodes], edge_index) for each in (model, twin))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [None, "row", "col"])
def test_an_edge_index_of_pyg_is_taken(order: str | None) -> None:
    model = Network(WIDTH)
    twin = copy.deepcopy(model)
    gtkern.accelerate(twin)
    edges = EdgeIndex(EDGES, sparse_size=(NODES, NODES))
    edges = edges if order is None else edges.sort_by(order)[0]
    x = torch.randn(NODES, WIDTH)
    torch.testing.assert_close(twin(x, edges), model(x, edges), rtol=1e-5, atol=1e-6)


def shares(rank: int, folder: str, port: int) -> None:
    """Train a step on one half of the graphs, and write the gradients."""
    torch.set_num_threads(1)
    place = f"tcp://127.0.0.1:{port}"
    patience = datetime.timedelta(seconds=PATIENCE)
    distributed.init_process_group(
        "gloo", init_method=place, rank=rank, world_size=2, timeout=patience
    )
    MessagePassingTwin.fewest = 0
    model, halves = problem()
    gtkern.accelerate(model)
    parallel = DistributedDataParallel(model)
    parallel(halves[rank], EDGES).square().mean().backward()
    written = pathlib.Path(folder, f"{rank}.part")
    torch.save([parameter.grad for parameter in model.parameters()], written)
    written.rename(written.with_suffix(".pt"))
    # it is killed here: torch's gloo can lock up while it is taken down behind a reducer
    time.sleep(PATIENCE)


def problem() -> tuple[Network, list[Tensor]]:
    torch.manual_seed(0)
    return Network(WIDTH), [torch.randn(NODES, WIDTH) for _ in range(2)]


def test_two_processes_have_the_gradients_of_one(tmp_path: pathlib.Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = multiprocessing.spawn(shares, args=(str(tmp_path), port), nprocs=2, join=False)
    files = [tmp_path / f"{rank}.pt" for rank in range(2)]
    end = time.monotonic() + PATIENCE
    try:
        while not all(file.exists() for file in files):
            assert time.monotonic() < end, "the processes wait for each other"
            assert not started.join(0.05), "the processes ended without a result"
    finally:
        for process in started.processes:
            process.kill()
    model, halves = problem()
    loss = torch.stack([model(x, EDGES).square().mean() for x in halves]).mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for file in files:
        for value, other in zip(torch.load(file), expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6)
