"""Times a step of DeepGPT on Graphormer against the released formulation and full fine-tuning.

Then the inference of a batch whose graphs have tasks of their own, against a call for each task.

python -m bench.tuned [--width 768] [--layers 12] [--prefix 40] [--first 0] [--tasks 4]
                      [--graphs 32] [--sizes molhiv] [--dataset bace --data-root FOLDER] [--dropout]
                      [--device cpu] [--out CSV]
"""

from __future__ import annotations

import argparse
import copy
import math
import pathlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.graphs import SIZES
from bench.harness import Clock, peak_memory, race
from bench.limits import Limits
from bench.models import some_graphs
from bench.padded_graphormer import FullTokenGraphormer, PaddedGraphormer, padded
from bench.records import Record, conditions, save
from gtkern.data import PackedGraphs
from gtkern.methods.deepgpt import PromptLibrary, PromptTuner, parameter_counts
from gtkern.models import Graphormer, GraphormerSettings, load_checkpoint
from gtkern.training.memory import keep_freed_memory

__all__ = ["main"]

GOALS = {"full tokens": 2.0, "full fine-tuning": 1.5}
"""Times as fast as each."""


def _step(network: nn.Module, batch: Any, labels: Tensor, trained: Iterable[Tensor]) -> Any:
    """One step of training, its batch being there."""
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch), labels).backward()
        optimizer.step()

    return run


def _print_tasks(network: nn.Module, packed: PackedGraphs, options: argparse.Namespace) -> None:
    """Time a batch whose graphs take turns among the tasks."""
    library = PromptLibrary(network)
    names = [f"task {number}" for number in range(options.tasks)]
    for name in names:
        library.add(name, PromptTuner(network, options.prefix).eval())
    tasks = [names[graph % len(names)] for graph in range(len(packed))]
    batch = packed.batch(range(len(packed))).to(options.device)
    parts = [
        (name, packed.batch(range(at, len(packed), len(names))).to(options.device))
        for at, name in enumerate(names)
    ]

    def by_task() -> None:
        for name, part in parts:
            library(part, name)

    calls = [lambda: library(batch, tasks), by_task, lambda: library(batch, names[0])]
    for call in calls:
        call()
    samples = race(calls, Clock(options.device), budget_s=options.budget / 2)
    view = Table(title=f"inference, {len(packed)} graphs, {len(names)} tasks")
    for title in ("how", "ms", "± IQR", "times as long"):
        view.add_column(title, justify="left" if title == "how" else "right")
    sides = ("mixed in one batch", "a call for each task", "one task alone")
    for name, sample in zip(sides, samples, strict=True):
        view.add_row(
            name,
            f"{sample.median * 1e3:.1f}",
            f"{sample.spread * 1e3:.1f}",
            f"{sample.ratio_to(samples[0]):.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(view)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tuned",
        description="Time a step of DeepGPT against other ways to tune a Graphormer.",
    )
    base = GraphormerSettings.base()
    parser.add_argument("--width", type=int, default=base.width)
    parser.add_argument("--layers", type=int, default=base.layers)
    parser.add_argument("--prefix", type=int, default=40, help="tokens of each layer")
    parser.add_argument("--first", type=int, default=0, help="the first layer with prompts")
    parser.add_argument("--tasks", type=int, default=4, help="that share a batch in inference")
    parser.add_argument("--graphs", type=int, default=32, help="in the batch")
    parser.add_argument("--sizes", choices=SIZES, default="molhiv", help="of generated graphs")
    parser.add_argument("--dataset", help="cut the batch from this set (it needs integer features)")
    parser.add_argument("--data-root", help="where the set is")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--dropout", action="store_true", help="as the settings have it, else none")
    parser.add_argument("--out", type=pathlib.Path, metavar="CSV", help="add the rows to this file")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each side")
    options = parser.parse_args(arguments)

    keep_freed_memory()
    heads = max(base.heads * options.width // base.width, 1)
    settings = replace(
        base, width=options.width, heads=heads, layers=options.layers, feedforward=options.width
    )
    if not options.dropout:
        settings = replace(settings, dropout=0, attention_dropout=0, activation_dropout=0)
    packed = some_graphs(options.dataset, options.data_root, options.sizes, options.graphs)
    Graphormer.encode(packed, settings)

    device = options.device
    torch.manual_seed(0)
    plain = PaddedGraphormer(packed.num_features, packed.num_edge_features, 2, settings).to(device)
    own = Graphormer(packed.node_categories, 2, settings, edge_features=packed.edge_categories).to(
        device
    )
    load_checkpoint(own, plain.state_dict())
    whole = copy.deepcopy(own)
    tuner = PromptTuner(own, options.prefix, layers=range(options.first, options.layers))
    prompts = tuner.prompts
    assert prompts.prefix is not None and prompts.vector is not None
    rows = FullTokenGraphormer(
        plain, prompts.prefix.detach(), prompts.vector.detach(), first=options.first
    ).to(device)
    picked = list(range(len(packed)))
    batch = packed.batch(picked).to(device)
    batches = batch, padded(packed, picked, settings.path_length, device), batch
    networks = tuner, rows, whole
    with torch.no_grad():
        pair = [net.eval()(each) for net, each in zip(networks[:2], batches[:2], strict=True)]
    apart = float((pair[0] - pair[1]).abs().max() / pair[1].abs().max())

    labels = torch.randint(2, (len(packed),), generator=torch.Generator().manual_seed(0)).to(device)
    calls = [
        _step(net.train(), each, labels, [p for p in net.parameters() if p.requires_grad])
        for net, each in zip(networks, batches, strict=True)
    ]
    for call in calls:
        call()
    samples = race(calls, Clock(device), budget_s=options.budget)
    peaks = [peak_memory(call, device)[1] for call in calls]
    sizes = packed.num_nodes
    mean = float(sizes.float().mean())
    view = Table(
        title=f"Graphormer, width {settings.width}, {settings.layers} layers, {options.prefix} "
        f"tokens, a training step, float32 on {device}: {len(packed)} graphs of "
        f"{int(sizes.min())} .. {int(sizes.max())} nodes, {mean:.1f} on average"
    )
    sides = ("DeepGPT", *GOALS)
    for title in ("side", "ms", "± IQR", "times as long", "peak MiB", "times as much"):
        view.add_column(title, justify="left" if title == "side" else "right")
    for name, sample, peak in zip(sides, samples, peaks, strict=True):
        view.add_row(
            name,
            f"{sample.median * 1e3:.1f}",
            f"{sample.spread * 1e3:.1f}",
            f"{sample.ratio_to(samples[0]):.2f}",
            f"{peak / 2**20:.1f}",
            f"{peak / peaks[0]:.2f}",
        )
    if options.out:
        shared = conditions(device, Limits(device))
        place = f"{options.prefix}-from-{options.first}" if options.first else f"{options.prefix}"
        case = f"{settings.width}-{place}-{options.dataset or options.sizes}-{len(packed)}"
        save(
            options.out,
            [
                Record(
                    "deepgpt",
                    case + ("-dropout" if options.dropout else ""),
                    f"{len(packed)} graphs of {mean:.1f} nodes, {int(sizes.max())} at most",
                    "fwd+bwd",
                    "float32",
                    "gtkern" if name == "DeepGPT" else name.replace(" ", "-"),
                    ms=sample.median * 1e3,
                    iqr_ms=sample.spread * 1e3,
                    turns=len(sample.turns),
                    peak_mib=peak / 2**20,
                    ratio=(samples[1] if name == "DeepGPT" else sample).ratio_to(samples[0]),
                    goal=GOALS.get(name, math.nan),
                    note="a step of training, the optimizer's included",
                    **shared,
                )
                for name, sample, peak in zip(sides, samples, peaks, strict=True)
            ],
        )
    Console(width=None if sys.stdout.isatty() else 120).print(view)
    _print_tasks(own, packed, options)
    print(f"trained: {parameter_counts(tuner)}")
    print(f"outputs of DeepGPT and full tokens differ by {apart:.1e} of the largest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
