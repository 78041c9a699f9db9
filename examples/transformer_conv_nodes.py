"""Classify nodes with PyG's TransformerConv. Two lines, marked, make it faster.

python examples/transformer_conv_nodes.py [--epochs 20] [--rows 100] [--plain]

The graph is a generated minesweeper field: which cells hide a mine?
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv
from torchmetrics.functional.classification import binary_auroc

import gtkern  # 1 of 2
from gtkern.data import minesweeper


class Network(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                TransformerConv(channels, 16, heads=4, beta=True, dropout=0.1),
                TransformerConv(64, 16, heads=4, beta=True, dropout=0.1),
                TransformerConv(64, 16, heads=4, beta=True, dropout=0.1),
            ]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in self.layers)
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x, edge_index)).relu()
        out: Tensor = self.head(x).squeeze(1)
        return out


def main(arguments: Sequence[str] | None = None) -> float:
    """Train; returns the test AUC."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=100, help="cells along a side of the field")
    parser.add_argument("--plain", action="store_true", help="leave the model as it is")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    data = minesweeper(rows=options.rows)
    model = Network(data.x.size(1))
    if not options.plain:
        print(gtkern.accelerate(model))  # 2 of 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    label = data.y.float()
    begin = time.perf_counter()
    for _ in range(options.epochs):
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        loss = nn.functional.binary_cross_entropy_with_logits(
            out[data.train_mask], label[data.train_mask]
        )
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - begin
    model.eval()
    with torch.no_grad():
        out = model(data.x, data.edge_index)
    score = float(binary_auroc(out[data.test_mask], data.y[data.test_mask]))
    print(f"test AUC {score:.3f} after {options.epochs} epochs in {seconds:.1f} s")
    return score


if __name__ == "__main__":
    main()
