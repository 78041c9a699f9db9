"""Times whole models as they are and with the same layers accelerated, forward and backward.

python -m bench.dropin [--data-root FOLDER] [--models NAME ...] [--budget 8] [--out CSV]
python -m bench.dropin --grid     layers on graphs of many sizes: where is a twin slower?
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
from torch_geometric.nn import APPNP, GATConv, GINConv, GPSConv, TransformerConv, global_add_pool

import gtkern
from bench.harness import Clock, peak_memory, race, relative_error
from bench.limits import Limits
from bench.run import Record, conditions, save
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


@dataclass(frozen=True)
class Problem:
    """A model, and what it is called with.

    Attributes:
        goal: how many times as fast the accelerated model shall be.
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


def _molecules(root: str) -> Problem:
    packed = load_graphs("nci1", root).graphs
    batch = packed.batch(list(range(128)))
    x = batch.x if batch.x.is_floating_point() else nn.functional.one_hot(batch.x[:, 0]).float()
    graph = torch.arange(128).repeat_interleave(batch.ptr.diff())
    shape = f"128 graphs, N {x.size(0):,} E {batch.edge_index.size(1):,}"
    return Problem(Graphs(x.size(1), 64), (x, batch.edge_index, graph), 2, shape)


MODELS: dict[str, Callable[[str], Problem]] = {
    "transformer-conv-photo": _on_nodes("photo", _stack(TransformerConv, 4, 16), 10),
    "transformer-conv-tolokers": _on_nodes("tolokers", _stack(TransformerConv, 4, 16), 10),
    "gat-conv-photo": _on_nodes("photo", _stack(GATConv, 4, 16), 4),
    "gat-conv-tolokers": _on_nodes("tolokers", _stack(GATConv, 4, 16), 4),
    "gps-conv-nci1": _molecules,
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
        report = gtkern.accelerate(twin)
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
            f"{problem.goal:g}",
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


def _grid(budget: float) -> None:
    """Layers on graphs from tiny to small, the edges known from before and new in every call."""
    kinds = {"transformer": TransformerConv, "gat": GATConv}
    view = Table(title="A layer as it is over its twin, forward and backward: times as long")
    for title in ("layer", "nodes", "edges", "heads x width", "same edges", "new edges"):
        view.add_column(title, justify="left" if title == "layer" else "right")
    for kind in (*kinds, "appnp"):
        for nodes, edges in ((4, 6), (30, 60), (300, 1200), (3000, 12000)):
            for heads, width in ((1, 4), (8, 32)):
                row = _cell(kinds.get(kind), nodes, edges, heads, width, budget)
                view.add_row(kind, f"{nodes}", f"{edges}", f"{heads} x {width}", *row)
    Console(width=None if sys.stdout.isatty() else 120).print(view)


def _cell(layer: Any, nodes: int, edges: int, heads: int, width: int, budget: float) -> list[str]:
    torch.manual_seed(0)
    channels = heads * width
    model = APPNP(10, 0.1) if layer is None else layer(channels, width, heads=heads)
    twin = copy.deepcopy(model)
    gtkern.accelerate(twin)
    x = torch.randn(nodes, channels, requires_grad=True)
    given = random_edges("power_law", nodes, edges, seed=0)
    row = []
    for fresh in (False, True):

        def run(each: nn.Module, fresh: bool = fresh) -> Any:
            out = each(x, given.clone() if fresh else given)
            return torch.autograd.grad(out.square().sum(), [x, *each.parameters()])

        calls = [lambda each=each: run(each) for each in (twin, model)]
        for call in calls:
            call()
        samples = race(calls, Clock(DEVICE), budget_s=budget)
        row.append(f"{samples[1].ratio_to(samples[0]):.2f}")
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.dropin",
        description="Time whole models as they are and with the same layers accelerated.",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--data-root", default="data", help="where the published sets are")
    parser.add_argument("--grid", action="store_true", help="single layers on small graphs")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds for each side")
    parser.add_argument("--out", type=pathlib.Path, metavar="CSV", help="add the rows to this file")
    options = parser.parse_args(arguments)
    if options.grid:
        _grid(options.budget)
    else:
        _whole(options.models, options.data_root, options.budget, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
