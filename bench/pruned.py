"""Times a pruned, compact network against the dense one, and the saved time against saved FLOPs.

python -m bench.pruned [--model graphgps|graphormer] [--width 64] [--budget 0.5] [--split 0,1,0,1]
                       [--structure neurons|blocks] [--graphs 128] [--sizes molhiv] [--dropout]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.graphs import SIZES, BatchSpec
from bench.harness import Clock, peak_memory, race
from bench.models import molecules
from gtkern.methods.gtsp.joint import cut, split_budget
from gtkern.methods.gtsp.settings import PruneSettings
from gtkern.models import GraphGPS, GraphGPSSettings, Graphormer, GraphormerSettings
from gtkern.training import settings as settings_of
from gtkern.training.flops import count_flops
from gtkern.training.memory import keep_freed_memory

__all__ = ["main"]


def _made(model: str, width: int | None, dropout: bool) -> tuple[Any, Any]:
    """A model's class and its settings."""
    if model == "graphormer":
        base = GraphormerSettings.base()
        size = width or base.width
        heads = base.heads * size // base.width
        settings: Any = replace(base, width=size, heads=heads, feedforward=size)
        none = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
        return Graphormer, settings if dropout else replace(settings, **none)
    settings = GraphGPSSettings(width=width or 64, dropout=0.0)
    return GraphGPS, settings if dropout else replace(settings, attention_dropout=0.0)


def _step(network: nn.Module, batch: Any) -> Any:
    """One step of training."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    labels = torch.zeros(batch.ptr.numel() - 1, dtype=torch.int64, device=batch.x.device)

    def run() -> None:
        network.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch), labels).backward()
        optimizer.step()

    return run


def _inference(network: nn.Module, batch: Any) -> Any:
    def run() -> None:
        network.eval()
        with torch.no_grad():
            network(batch)

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pruned",
        description="Time a pruned, compact network against the dense one.",
    )
    parser.add_argument("--model", choices=("graphgps", "graphormer"), default="graphgps")
    parser.add_argument("--width", type=int, help="default: 64, of graphormer 768")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the FLOPs")
    parser.add_argument("--split", default="0,1,0,1", help="for tokens, heads, layers, weights")
    parser.add_argument("--structure", choices=("blocks", "neurons"), default="neurons")
    parser.add_argument("--graphs", type=int, default=128, help="in the batch")
    parser.add_argument("--sizes", choices=SIZES, default="molhiv", help="of generated graphs")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--dropout", action="store_true", help="as the settings have it, else none")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each side")
    options = parser.parse_args(arguments)

    keep_freed_memory()
    kind, network_settings = _made(options.model, options.width, options.dropout)
    packed = molecules(BatchSpec(options.sizes, options.graphs).sizes().tolist())
    kind.encode(packed, network_settings)
    torch.manual_seed(0)
    features = packed.node_categories
    dense = kind(features, 2, network_settings, edge_features=packed.edge_categories)
    values = {
        "dataset": options.sizes,
        "budget": options.budget,
        "split": [float(part) for part in options.split.split(",")],
        "weights": {"structure": options.structure},
        "stretch": {"end": 1},
        "training": {"epochs": 2, "lr": 1e-3, "warmup_epochs": 0},
    }
    few = packed.batch(range(min(16, len(packed))))
    settings, *_ = split_budget(settings_of.read(PruneSettings, values), dense, few)
    compact = cut(settings, dense)
    device = options.device
    batch = packed.batch(range(len(packed))).to(device)
    networks = dense.to(device), compact.to(device)
    ratios = ", ".join(f"{name} {value:.2f}" for name, value in settings.ratios.items())
    view = Table(
        title=f"{options.model}, width {network_settings.width}, float32 on {device}: "
        f"{len(packed)} graphs, {batch.x.size(0)} nodes; {ratios}; {options.structure}"
    )
    for title in ("pass", "side", "ms", "± IQR", "faster", "FLOPs", "saved time/FLOPs", "MiB"):
        view.add_column(title, justify="left" if title in ("pass", "side") else "right")
    for name, make in (("inference", _inference), ("training", _step)):
        calls = [make(network, batch) for network in networks]
        for call in calls:
            call()
        samples = race(calls, Clock(device), budget_s=options.seconds)
        flops = [count_flops(call) for call in calls]
        peaks = [peak_memory(call, device)[1] for call in calls]
        share = samples[1].ratio_to(samples[0])
        saved = (1 - share) / (1 - flops[1] / flops[0])
        for at, side in enumerate(("dense", "compact")):
            view.add_row(
                name,
                side,
                f"{samples[at].median * 1e3:.2f}",
                f"{samples[at].spread * 1e3:.2f}",
                f"{1 / share if at else 1:.2f}x",
                f"{flops[at] / flops[0]:.3f}",
                f"{saved:.2f}" if at else "",
                f"{peaks[at] / 2**20:.1f}",
            )
    Console(width=None if sys.stdout.isatty() else 120).print(view)
    return 0


if __name__ == "__main__":
    sys.exit(main())
