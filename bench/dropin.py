"""Times whole models as they are and with the same layers accelerated, forward and backward.

python -m bench.dropin [--data-root FOLDER] [--models NAME ...] [--budget 8] [--out CSV]
python -m bench.dropin --grid [--layers NAME ...] [--budget 1]    where is a layer's twin slower?
"""

from __future__ import annotations

import argparse
import copy
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import prune
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GATv2Conv,
    GINConv,
    GPSConv,
    TopKPooling,
    TransformerConv,
    global_add_pool,
)
from torch_geometric.utils import to_dense_batch

import gtkern
from bench.copied_layers import Exphormer, ExphormerAttention, GraphormerMultiheadAttention
from bench.dropin_grid import LAYERS, show_grid
from bench.harness import Clock, peak_memory, race, relative_error
from bench.limits import Limits
from bench.records import Record, conditions, save
from gtkern.data import NodeData, load_graphs, load_published
from gtkern.testing import random_edges

__all__ = ["main"]

DEVICE = torch.device("cpu")


class Stack(nn.Module):
    """Layers of message passing, one behind the other, with ReLU between them."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, *edges: Any) -> Tensor:
        for at, layer in enumerate(self.layers):
            x = layer(x if at == 0 else x.relu(), *edges)
        return x


class Predictor(nn.Module):
    """APPNP: an MLP, then propagation."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, 64), nn.ReLU(), nn.Linear(64, classes))
        self.propagate = APPNP(10, 0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagate(self.mlp(x), edge_index)
        return out


class Graphs(nn.Module):
    """GPS layers on a batch of graphs."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encode = nn.Linear(channels, width)
        self.layers = nn.ModuleList(
            GPSConv(
                width,
                GINConv(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))),
                heads=4,
            )
            for _ in range(3)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.encode(x)
        for layer in self.layers:
            x = layer(x, edge_index, batch)
        out: Tensor = self.head(global_add_pool(x, batch))
        return out


class Pooled(nn.Module):
    """Two poolings, one behind the other, and a sum over what is left of each graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TopKPooling(width) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        for layer in self.layers:
            x, edge_index, _, batch, _, _ = layer(x, edge_index, None, batch)
        return global_add_pool(x, batch)


class Padded(nn.Module):
    """Layers on a padded batch [G, n, C]; the sum over what is no padding."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, padding: Tensor, bias: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            if bias is None:
                x = layer(x, src_key_padding_mask=padding)
            else:
                turned = x.transpose(0, 1)
                named = {"key_padding_mask": padding, "need_weights": False}
                x = x + layer(turned, turned, turned, bias, **named)[0].transpose(0, 1)
        return x.masked_fill(padding[..., None], 0).sum(1)


class Expanded(nn.Module):
    """Exphormer's attention over the edges of a graph and of an expander, three times."""

    def __init__(self, channels: int, edges: Tensor, nodes: int) -> None:
        super().__init__()
        self.encode = nn.Linear(channels, 64)
        virtual = torch.zeros(2, 0, dtype=torch.int64)
        self.layers = nn.ModuleList(
            Exphormer(ExphormerAttention(64, 64, 4, False, False), edges, virtual) for _ in range(3)
        )
        self.kind = nn.Embedding(2, 64)
        self.nodes = nodes

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        x, attr, none = self.encode(x), self.kind(kind), x.new_zeros(0, 64)
        for layer in self.layers:
            x = x + layer(x, attr, none, none)[0]
        return x


@dataclass(frozen=True)
class Problem:
    """A model, and what it is called with.

    Attributes:
        goal: how many times as fast the accelerated model shall be; NaN: none was set.
        shape: in words.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    goal: float
    shape: str


def _stack(layer: Any, heads: int, width: int) -> Callable[[NodeData], nn.Module]:
    def make(data: NodeData) -> nn.Module:
        inner = heads * width
        return Stack(
            [
                layer(data.x.size(1), width, heads=heads),
                layer(inner, width, heads=heads),
                layer(inner, data.num_classes, heads=1),
            ]
        )

    return make


def _on_nodes(
    name: str, make: Callable[[NodeData], nn.Module], goal: float
) -> Callable[[str], Problem]:
    def problem(root: str) -> Problem:
        data = load_published(name, root)
        shape = f"N {data.x.size(0):,} E {data.edge_index.size(1):,}"
        return Problem(make(data), (data.x, data.edge_index), goal, shape)

    return problem


def _predictor(data: NodeData) -> nn.Module:
    return Predictor(data.x.size(1), data.num_classes)


def _batch(name: str, root: str) -> tuple[Tensor, Tensor, Tensor, str]:
    """x, edge_index, the graph of each node, and the sizes in words, of 128 graphs."""
    packed = load_graphs(name, root).graphs
    batch = packed.batch(list(range(128)))
    x = batch.x if batch.x.is_floating_point() else nn.functional.one_hot(batch.x[:, 0]).float()
    graph = torch.arange(128).repeat_interleave(batch.ptr.diff())
    shape = f"128 graphs, N {x.size(0):,} E {batch.edge_index.size(1):,}"
    return x, batch.edge_index, graph, shape


def _molecules(root: str) -> Problem:
    x, edges, graph, shape = _batch("nci1", root)
    return Problem(Graphs(x.size(1), 64), (x, edges, graph), 2, shape)


def _pooling(root: str) -> Problem:
    x, edges, graph, shape = _batch("nci1", root)
    return Problem(Pooled(64), (torch.randn(x.size(0), 64), edges, graph), math.nan, shape)


def _encoder(root: str) -> Problem:
    _, _, graph, shape = _batch("nci1", root)
    x, real = to_dense_batch(torch.randn(len(graph), 64), graph)
    layers = [
        nn.TransformerEncoderLayer(64, 4, 128, 0.0, "relu", batch_first=True) for _ in range(3)
    ]
    return Problem(Padded(layers), (x, ~real), math.nan, shape)


def _graphormer(root: str) -> Problem:
    _, _, graph, shape = _batch("molhiv", root)
    x, real = to_dense_batch(torch.randn(len(graph), 80), graph)
    bias = torch.randn(128, 8, x.size(1), x.size(1), requires_grad=True)
    layers = [GraphormerMultiheadAttention(80, 8) for _ in range(3)]
    return Problem(Padded(layers), (x, ~real, bias), math.nan, shape)


def _exphormer(root: str) -> Problem:
    data = load_published("photo", root)
    nodes = data.x.size(0)
    expander = random_edges("uniform", nodes, 6 * nodes, seed=0)
    edges = torch.cat((data.edge_index, expander), dim=1)
    kind = (torch.arange(edges.size(1)) >= data.edge_index.size(1)).long()
    model = Expanded(data.x.size(1), edges, nodes)
    return Problem(model, (data.x, kind), math.nan, f"N {nodes:,} E {edges.size(1):,}")


def _pruned(root: str) -> Problem:
    layers = [nn.Linear(512, 512) for _ in range(3)]
    for layer in layers:
        kept = (torch.rand(16, 16) < 0.25).float()
        mask = kept.repeat_interleave(32, 0).repeat_interleave(32, 1)
        with torch.no_grad():  # a weight with a history cannot be copied
            prune.custom_from_mask(layer, "weight", mask)
    return Problem(Stack(layers), (torch.randn(4096, 512),), math.nan, "a quarter of 32 x 32")


MODELS: dict[str, Callable[[str], Problem]] = {
    "transformer-conv-photo": _on_nodes("photo", _stack(TransformerConv, 4, 16), 10),
    "transformer-conv-tolokers": _on_nodes("tolokers", _stack(TransformerConv, 4, 16), 10),
    "gat-conv-photo": _on_nodes("photo", _stack(GATConv, 4, 16), 4),
    "gat-conv-tolokers": _on_nodes("tolokers", _stack(GATConv, 4, 16), 4),
    "gatv2-conv-photo": _on_nodes("photo", _stack(GATv2Conv, 4, 16), 4),
    "gatv2-conv-tolokers": _on_nodes("tolokers", _stack(GATv2Conv, 4, 16), 4),
    "gps-conv-nci1": _molecules,
    "encoder-layer-nci1": _encoder,
    "graphormer-attention-molhiv": _graphormer,
    "exphormer-attention-photo": _exphormer,
    "topk-pooling-nci1": _pooling,
    "pruned-mlp": _pruned,
    "appnp-photo": _on_nodes("photo", _predictor, 3),
    "appnp-tolokers": _on_nodes("tolokers", _predictor, 3),
}
"""Whole models, by name."""


def _step(model: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], list[Tensor]]:
    """Output and gradients of all parameters."""
    parameters = list(model.parameters())

    def run() -> list[Tensor]:
        out = model(*inputs)
        return [out, *torch.autograd.grad(out.square().mean(), parameters)]

    return run


def _as_two(results: list[Tensor]) -> list[Tensor]:
    out, *gradients = (result.detach() for result in results)
    return [out, torch.cat([gradient.flatten() for gradient in gradients])]


def _whole(names: Sequence[str], root: str, budget: float, out: pathlib.Path | None) -> None:
    view = Table(title="Models with gtkern.accelerate and without, forward and backward, float32")
    for title in ("model", "as it is ms", "accelerated ms", "ratio", "goal", "peak MiB", "share"):
        view.add_column(title, justify="left" if title == "model" else "right")
    for name in names:
        torch.manual_seed(0)
        problem = MODELS[name](root)
        model = problem.model
        twin = copy.deepcopy(model)
        report = gtkern.accelerate(twin, ignore_padding=True)
        assert report.replaced, str(report)
        calls = [_step(each, problem.inputs) for each in (twin, model)]
        # all gradients as one vector: some, such as that of the keys' bias, are 0 but for rounding
        apart = relative_error(*(_as_two(call()) for call in calls))
        samples = race(calls, Clock(DEVICE), budget_s=budget)
        peaks = [peak_memory(call, DEVICE)[1] for call in calls]
        ratio = samples[1].ratio_to(samples[0])
        view.add_row(
            name,
            f"{samples[1].median * 1e3:.1f}",
            f"{samples[0].median * 1e3:.1f}",
            f"{ratio:.1f}",
            "" if math.isnan(problem.goal) else f"{problem.goal:g}",
            f"{peaks[1] / 2**20:.0f} -> {peaks[0] / 2**20:.0f}",
            f"{peaks[0] / peaks[1]:.2f}",
        )
        print(f"{name}: {problem.shape}; results differ by {apart:.1e} of their size")
        if out:
            shared = conditions(DEVICE, Limits(DEVICE))
            save(
                out,
                [
                    Record(
                        "dropin",
                        name,
                        problem.shape,
                        "fwd+bwd",
                        "float32",
                        side,
                        ms=sample.median * 1e3,
                        iqr_ms=sample.spread * 1e3,
                        turns=len(sample.turns),
                        peak_mib=peak / 2**20,
                        ratio=ratio,
                        goal=problem.goal if side == "accelerated" else math.nan,
                        note="output and the gradients of all parameters",
                        **shared,
                    )
                    for side, sample, peak in zip(
                        ("accelerated", "as-it-is"), samples, peaks, strict=True
                    )
                ],
            )
    Console(width=None if sys.stdout.isatty() else 120).print(view)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.dropin",
        description="Time whole models as they are and with the same layers accelerated.",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--data-root", default="data", help="where the published sets are")
    parser.add_argument("--grid", action="store_true", help="single layers, tiny to large")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS), help="of it")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds for each side")
    parser.add_argument("--out", type=pathlib.Path, metavar="CSV", help="add the rows to this file")
    options = parser.parse_args(arguments)
    if options.grid:
        show_grid(options.budget, options.layers)
    else:
        _whole(options.models, options.data_root, options.budget, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
