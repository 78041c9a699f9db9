"""Times a step of DeepGPT on one large graph against full fine-tuning: prompts in Exphormer.

python -m bench.tuned_nodes [--nodes 1000000] [--degree 9] [--width 64] [--layers 2] [--prefix 20]
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.harness import Clock, peak_memory, race
from gtkern.data.power_law import power_law
from gtkern.methods.deepgpt import PromptTuner, parameter_counts
from gtkern.models import Exphormer, augment
from gtkern.training.memory import keep_freed_memory

__all__ = ["main"]


def _step(network: nn.Module, inputs: Sequence[Any], y: Tensor, trained: Iterable[Tensor]) -> Any:
    """One step of training on all nodes."""
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(*inputs), y).backward()
        optimizer.step()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tuned_nodes",
        description="Time a step of DeepGPT on one large graph against full fine-tuning.",
    )
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--degree", type=float, default=9.0, help="of the graph, on average")
    parser.add_argument("--expander", type=int, default=2, help="half of the expander's degree")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--prefix", type=int, default=20, help="tokens of each layer")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each side")
    options = parser.parse_args(arguments)

    keep_freed_memory()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        data = power_law(folder, nodes=options.nodes, mean_degree=options.degree)
        graph = augment(data.edge_index, options.nodes, expander_degree=options.expander)
        x, y = data.x.clone(), data.y.long().clone()
        del data
    classes = int(y.max()) + 1
    whole = Exphormer(
        x.size(1), classes, width=options.width, heads=options.heads, layers=options.layers
    )
    tuner = PromptTuner(copy.deepcopy(whole), options.prefix)
    calls = [
        _step(net.train(), (x, graph), y, [p for p in net.parameters() if p.requires_grad])
        for net in (tuner, whole)
    ]
    for call in calls:
        call()
    device = torch.device("cpu")
    samples = race(calls, Clock(device), budget_s=options.budget)
    peaks = [peak_memory(call, device)[1] for call in calls]
    view = Table(
        title=f"Exphormer, width {options.width}, {options.layers} layers, {options.prefix} "
        f"tokens, a training step, float32: {options.nodes:,} nodes, {graph.num_edges:,} edges"
    )
    for title in ("side", "ms", "± IQR", "times as long", "peak MiB", "times as much"):
        view.add_column(title, justify="left" if title == "side" else "right")
    sides = ("DeepGPT", "full fine-tuning")
    for name, sample, peak in zip(sides, samples, peaks, strict=True):
        view.add_row(
            name,
            f"{sample.median * 1e3:.1f}",
            f"{sample.spread * 1e3:.1f}",
            f"{sample.ratio_to(samples[0]):.2f}",
            f"{peak / 2**20:.1f}",
            f"{peak / peaks[0]:.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(view)
    print(f"trained: {parameter_counts(tuner)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
