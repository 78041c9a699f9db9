"""Classify molecules with PyG's GPSConv. Two lines, marked, make it faster.

python examples/gps_conv_molecules.py [--epochs 5] [--plain] [--data-root FOLDER]

With --data-root the molecules are those of NCI1, in the layout of PyG's TUDataset; else 1,000
generated graphs, trees with a ring grown in, whose class is the order of the atoms in the ring.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GINConv, GPSConv, global_add_pool

import gtkern  # 1 of 2
from gtkern.data import PackedGraphs, load_graphs, motifs


class Network(nn.Module):
    def __init__(self, categories: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.atoms = nn.Embedding(categories, width)
        self.layers = nn.ModuleList(GPSConv(width, _local(width), heads=4) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, batch: Data) -> Tensor:
        x = self.atoms(batch.x[:, 0])
        for layer in self.layers:
            x = layer(x, batch.edge_index, batch.batch)
        out: Tensor = self.head(global_add_pool(x, batch.batch, batch.num_graphs))
        return out


def _local(width: int) -> nn.Module:
    return GINConv(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))


def _graphs(root: str | None, count: int) -> PackedGraphs:
    return motifs(graphs=count) if root is None else load_graphs("nci1", root).graphs


def main(arguments: Sequence[str] | None = None) -> float:
    """Train; returns the share of test graphs whose class is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--graphs", type=int, default=1000, help="generated ones")
    parser.add_argument("--data-root", help="take NCI1 from this folder")
    parser.add_argument("--plain", action="store_true", help="leave the model as it is")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    graphs = _graphs(options.data_root, options.graphs)
    order = torch.randperm(len(graphs))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    categories = int(graphs.batch(order).x.max()) + 1
    model = Network(categories, int(graphs.batch(order).y.max()) + 1)
    if not options.plain:
        print(gtkern.accelerate(model))  # 2 of 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    begin = time.perf_counter()
    for _ in range(options.epochs):
        for chosen in train[torch.randperm(len(train))].split(128):
            batch = graphs.batch(chosen)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), batch.y).backward()
            optimizer.step()
    seconds = time.perf_counter() - begin
    model.eval()
    with torch.no_grad():
        batch = graphs.batch(test)
        share = float((model(batch).argmax(1) == batch.y).float().mean())
    print(f"test accuracy {share:.3f} after {options.epochs} epochs in {seconds:.1f} s")
    return share


if __name__ == "__main__":
    main()
