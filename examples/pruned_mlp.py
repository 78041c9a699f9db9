"""Prune a multilayer perceptron in blocks and tune it further. Two lines, marked, make it faster.

python examples/pruned_mlp.py [--epochs 6] [--keep 0.25] [--plain]

The task is generated: the class of a point is what a small random network says of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import gtkern  # 1 of 2

CHANNELS, CLASSES, BLOCK = 64, 8, 32


def points(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(CHANNELS, 64, generator=generator) / CHANNELS**0.5
    second = torch.randn(64, CLASSES, generator=generator)
    x = torch.randn(count, CHANNELS, generator=generator)
    return x, ((x @ first).relu() @ second).argmax(1)


def kept_blocks(weight: Tensor, keep: float) -> Tensor:
    """The mask of a weight that leaves the share `keep` of its blocks, those of largest norm."""
    tiles = weight.detach().unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    norm = tiles.norm(dim=(1, 3))
    least = norm.flatten().kthvalue(round(norm.numel() * (1 - keep))).values
    mask = (norm > least).float()
    return mask.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)


def fit(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> float:
    """Train; returns the seconds that it took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    begin = time.perf_counter()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(2048):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return time.perf_counter() - begin


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, prune, train on; returns the share of test points whose class is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6, help="before pruning, and again behind it")
    parser.add_argument("--points", type=int, default=20_480)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--keep", type=float, default=0.25, help="share of the blocks")
    parser.add_argument("--plain", action="store_true", help="leave the model as it is")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    width = options.width
    model = nn.Sequential(
        nn.Linear(CHANNELS, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, CLASSES),
    )
    x, y = points(options.points)
    test = slice(0, len(x) // 5)
    train = slice(len(x) // 5, None)
    dense = fit(model, x[train], y[train], options.epochs)
    for layer in (model[2], model[4]):
        prune.custom_from_mask(layer, "weight", kept_blocks(layer.weight, options.keep))
    if not options.plain:
        print(gtkern.accelerate(model))  # 2 of 2
    pruned = fit(model, x[train], y[train], options.epochs)
    share = accuracy(model, x[test], y[test])
    print(f"test accuracy {share:.3f}; {dense:.1f} s before pruning, {pruned:.1f} s behind it")
    return share


if __name__ == "__main__":
    main()
