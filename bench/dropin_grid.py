"""Single layers and their twins on inputs from tiny to large: is a twin slower anywhere?"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import prune
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GATv2Conv,
    GPSConv,
    TopKPooling,
    TransformerConv,
)
from torch_geometric.utils import to_dense_batch

import gtkern
from bench.copied_layers import Exphormer, ExphormerAttention, Graphormer
from bench.copied_layers import GraphormerMultiheadAttention as GraphormerAttention
from bench.harness import Clock, race
from gtkern.testing import random_edges

__all__ = ["LAYERS", "show_grid"]

SLOWER = 0.95
"""Ratios below this are marked."""


class Cell(NamedTuple):
    """A layer and what it is called with.

    Attributes:
        shape: in words.
        layer: as it is.
        x: float, requires grad.
        structure: edges, batch vector or mask, which a call may bring anew; None: there is none.
        call: of a layer, x and the structure.
    """

    shape: str
    layer: nn.Module
    x: Tensor
    structure: Tensor | None
    call: Callable[..., Any]


def _on_edges(make: Callable[[int, int], nn.Module]) -> Iterator[Cell]:
    sizes = ((4, 6), (30, 60), (300, 1_200), (3_000, 12_000), (10_000, 100_000))
    for (nodes, count), (heads, width) in itertools.product(sizes, ((1, 4), (8, 32))):
        edges = random_edges("power_law", nodes, count, seed=0)
        x = torch.randn(nodes, heads * width, requires_grad=True)
        shape = f"{nodes:,} nodes, {count:,} edges, {heads} x {width}"
        yield Cell(shape, make(heads, width), x, edges, lambda layer, x, edges: layer(x, edges))


def _sizes() -> Iterator[tuple[str, Tensor, int]]:
    """Batches of graphs: in words, the graph of each node, channels."""
    for (count, nodes), width in itertools.product(
        ((1, 6), (1, 24), (1, 300), (24, 24), (128, 25), (1_024, 25)), (16, 64)
    ):
        drawn = torch.randint(nodes // 2, nodes + 1, (count,)) if count > 1 else [nodes]
        batch = torch.arange(count).repeat_interleave(torch.as_tensor(drawn))
        yield f"{count:,} graphs of up to {nodes} nodes, {width} channels", batch, width


def _gps() -> Iterator[Cell]:
    for shape, batch, width in _sizes():
        layer = GPSConv(width, None, heads=4)
        x = torch.randn(len(batch), width, requires_grad=True)
        yield Cell(shape, layer, x, batch, lambda layer, x, batch: layer(x, None, batch))


def _pooling() -> Iterator[Cell]:
    for shape, batch, width in _sizes():
        x = torch.randn(len(batch), width, requires_grad=True)
        edges = random_edges("uniform", len(batch), 2 * len(batch), seed=0)
        yield Cell(
            shape,
            TopKPooling(width),
            x,
            batch,
            lambda layer, x, batch, edges=edges: layer(x, edges, None, batch)[0],
        )


def _padded(make: Callable[[int], nn.Module], call: Callable[..., Any]) -> Iterator[Cell]:
    for shape, batch, width in _sizes():
        x, real = to_dense_batch(torch.randn(len(batch), width), batch)
        yield Cell(shape, make(width), x.requires_grad_(), ~real, call)


def _encode(layer: nn.Module, x: Tensor, padding: Tensor) -> Tensor:
    out: Tensor = layer(x, src_key_padding_mask=padding)
    return out[~padding]


def _biased(layer: nn.Module, x: Tensor, padding: Tensor) -> Tensor:
    heads: Any = layer.num_heads
    bias = x.new_ones(len(x), heads, x.size(1), x.size(1))
    return Graphormer(layer, padding)(x.transpose(0, 1), bias)


def _exphormer() -> Iterator[Cell]:
    for cell in _on_edges(lambda heads, width: nn.Identity()):
        channels = cell.x.size(1)
        attr = torch.randn(cell.structure.size(1), channels)
        heads = 1 if channels == 4 else 8
        layer = ExphormerAttention(channels, channels, heads, False, False)

        def call(layer: nn.Module, x: Tensor, edges: Tensor, attr: Tensor = attr) -> Any:
            given = torch.zeros(2, 0, dtype=torch.int64)
            return Exphormer(layer, edges, given)(x, attr, x.new_zeros(0, x.size(1)), attr[:0])[0]

        yield cell._replace(layer=layer, call=call)


def _pruned() -> Iterator[Cell]:
    for rows, width, share in itertools.product((64, 1_024, 4_096), (256, 512), (0.25, 0.5)):
        layer = nn.Linear(width, width)
        kept = (torch.rand(width // 32, width // 32) < share).float()
        with torch.no_grad():  # a weight with a history cannot be copied
            mask = kept.repeat_interleave(32, 0).repeat_interleave(32, 1)
            prune.custom_from_mask(layer, "weight", mask)
        shape = f"{rows:,} rows, {width} channels, {share:.0%} of the blocks"
        x = torch.randn(rows, width, requires_grad=True)
        yield Cell(shape, layer, x, None, lambda layer, x, _: layer(x))


LAYERS: dict[str, Callable[[], Iterator[Cell]]] = {
    "TransformerConv": lambda: _on_edges(lambda h, d: TransformerConv(h * d, d, heads=h)),
    "GATConv": lambda: _on_edges(lambda h, d: GATConv(h * d, d, heads=h)),
    "GATv2Conv": lambda: _on_edges(lambda h, d: GATv2Conv(h * d, d, heads=h)),
    "APPNP": lambda: _on_edges(lambda h, d: APPNP(10, 0.1)),
    "GPSConv": _gps,
    "TopKPooling": _pooling,
    "TransformerEncoderLayer": lambda: _padded(
        lambda width: nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True),
        _encode,
    ),
    "Graphormer's attention": lambda: _padded(lambda w: GraphormerAttention(w, 4), _biased),
    "Exphormer's attention": _exphormer,
    "Linear, pruned": _pruned,
}
"""The cells of each layer."""


def show_grid(budget: float, names: list[str]) -> None:
    """Time layers as they are and as twins, where the structure is known and where it is new.

    Args:
        budget: seconds for each side of a cell.
        names: of LAYERS.
    """
    view = Table(title="A layer as it is over its twin, forward and backward: times as long")
    for title in ("layer", "input", "known structure", "new in each call"):
        view.add_column(title, justify="left" if title in ("layer", "input") else "right")
    slower = 0
    for name in names:
        torch.manual_seed(0)
        for cell in LAYERS[name]():
            ratios = [_ratio(cell, fresh, budget) for fresh in (False, True)[: 1 + _varies(cell)]]
            slower += sum(ratio < SLOWER for ratio in ratios)
            marks = [f"{ratio:.2f}{' <' if ratio < SLOWER else ''}" for ratio in ratios]
            view.add_row(name, cell.shape, *marks)
    Console(width=None if sys.stdout.isatty() else 120).print(view)
    print(f"{slower} below {SLOWER}")


def _varies(cell: Cell) -> bool:
    return cell.structure is not None


def _ratio(cell: Cell, fresh: bool, budget: float) -> float:
    twin = copy.deepcopy(cell.layer)
    gtkern.accelerate(twin, ignore_padding=True)

    def run(layer: nn.Module) -> Any:
        structure = cell.structure.clone() if fresh else cell.structure
        out = cell.call(layer, cell.x, structure)
        leaves = [cell.x, *(value for value in layer.parameters() if value.requires_grad)]
        return torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)

    calls = [lambda layer=layer: run(layer) for layer in (twin, cell.layer)]
    for call in calls:
        call()
        call()
    samples = race(calls, Clock(torch.device("cpu")), budget_s=budget)
    return samples[1].ratio_to(samples[0])
