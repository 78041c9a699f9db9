"""Times a training step of Graphormer against the same network on padded graphs.

python -m bench.models [--size slim|base] [--graphs 128] [--sizes molhiv] [--dropout]
                       [--dataset NAME --data-root FOLDER] [--device cpu] [--backend auto]
                       [--out CSV]
"""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch_geometric.data import Data

from bench.graphs import SIZES, BatchSpec
from bench.harness import Clock, peak_memory, race
from bench.limits import Limits
from bench.padded_graphormer import PaddedGraphormer, padded
from bench.records import Record, conditions, save
from gtkern import ops
from gtkern.data import PackedGraphs
from gtkern.models import Graphormer, GraphormerSettings, load_checkpoint

__all__ = ["main", "molecules", "some_graphs"]

NODE, EDGE = (119, 5, 12, 12, 10, 6, 6, 2, 2), (5, 6, 2)
"""Values of each feature of OGB's atoms and bonds."""
GOAL = 3.0
"""Times as fast as the padded network."""


def molecules(sizes: Sequence[int], seed: int = 0) -> PackedGraphs:
    """Graphs that look like molecules: trees of long branches, with a ring of six for ten atoms.

    Args:
        sizes: atoms of each.
        seed: of everything random here.
    """
    rng = np.random.default_rng(seed)
    graphs = []
    for size in sizes:
        bonds = [(max(i - 1 - int(rng.geometric(0.6) - 1), 0), i) for i in range(1, size)]
        bonds += [(i, i + 5) for i in rng.integers(0, max(size - 5, 1), size // 10) if i + 5 < size]
        ends = torch.tensor(sorted(set(bonds)), dtype=torch.int64).reshape(-1, 2).T
        # few of the possible atoms and bonds make up most of a molecule
        atoms = [np.minimum(rng.geometric(0.6, size) - 1, most - 1) for most in NODE]
        kinds = [np.minimum(rng.geometric(0.7, ends.size(1)) - 1, most - 1) for most in EDGE]
        graphs.append(
            Data(
                x=torch.from_numpy(np.stack(atoms, 1)),
                edge_index=torch.cat((ends, ends.flip(0)), dim=1),
                edge_attr=torch.from_numpy(np.stack(kinds, 1)).repeat(2, 1),
            )
        )
    return PackedGraphs.from_data_list(graphs, node_categories=NODE, edge_categories=EDGE)


def some_graphs(dataset: str | None, root: str | None, sizes: str, graphs: int) -> PackedGraphs:
    """Graphs with integer features, the same in every run.

    Args:
        dataset: drawn from this set; None: generated ones.
        root: where the set is.
        sizes: of generated graphs, one of SIZES.
        graphs: how many.
    """
    if dataset is None:
        return molecules(BatchSpec(sizes, graphs).sizes().tolist())
    from gtkern.data.graphs import load_graphs

    packed = load_graphs(dataset, root).graphs
    chosen = torch.randperm(len(packed), generator=torch.Generator().manual_seed(0))
    return PackedGraphs.from_data_list(
        [packed[i] for i in chosen[:graphs].tolist()],
        node_categories=packed.node_categories,
        edge_categories=packed.edge_categories,
    )


def _step(network: nn.Module, batch: Any, labels: Tensor) -> Any:
    """One step of training, its batch being there."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch), labels).backward()
        optimizer.step()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.models",
        description="Time a training step of Graphormer against the same network on padded graphs.",
    )
    parser.add_argument("--size", choices=("slim", "base"), default="slim")
    parser.add_argument("--graphs", type=int, default=128, help="in the batch")
    parser.add_argument("--sizes", choices=SIZES, default="molhiv", help="of generated graphs")
    parser.add_argument("--dataset", help="cut the batch from this set (it needs integer features)")
    parser.add_argument("--data-root", help="where the set is")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dropout", action="store_true", help="as the settings have it, else none")
    parser.add_argument("--out", type=pathlib.Path, metavar="CSV", help="add the rows to this file")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each side")
    options = parser.parse_args(arguments)

    settings = GraphormerSettings.base() if options.size == "base" else GraphormerSettings()
    if not options.dropout:
        settings = replace(settings, dropout=0, attention_dropout=0, activation_dropout=0)
    packed = some_graphs(options.dataset, options.data_root, options.sizes, options.graphs)
    Graphormer.encode(packed, settings)
    picked = list(range(len(packed)))

    device = options.device
    torch.manual_seed(0)
    other = PaddedGraphormer(packed.num_features, packed.num_edge_features, 2, settings).to(device)
    attend = functools.partial(ops.ragged_attention, backend=options.backend)
    own = Graphormer(
        packed.node_categories, 2, settings, edge_features=packed.edge_categories, attend=attend
    ).to(device)
    load_checkpoint(own, other.state_dict())
    batches = packed.batch(picked).to(device), padded(packed, picked, settings.path_length, device)
    with torch.no_grad():
        pair = [network.eval()(batch) for network, batch in zip((own, other), batches, strict=True)]
    apart = float((pair[0] - pair[1]).abs().max() / pair[1].abs().max())

    labels = torch.randint(2, (len(packed),), generator=torch.Generator().manual_seed(0)).to(device)
    calls = [
        _step(network.train(), batch, labels)
        for network, batch in zip((own, other), batches, strict=True)
    ]
    for call in calls:
        call()
    samples = race(calls, Clock(device), budget_s=options.budget)
    peaks = [peak_memory(call, device)[1] for call in calls]
    nodes = packed.num_nodes
    mean = float(nodes.float().mean())
    view = Table(
        title=f"Graphormer-{options.size}, a training step, float32 on {device}: {len(packed)} "
        f"graphs of {int(nodes.min())} .. {int(nodes.max())} nodes, {mean:.1f} on average"
    )
    for title in ("side", "ms", "± IQR", "times as long", "peak MiB", "times as much"):
        view.add_column(title, justify="left" if title == "side" else "right")
    for name, sample, peak in zip(("gtkern", "padded"), samples, peaks, strict=True):
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
        case = f"{options.size}-{options.dataset or options.sizes}-{len(packed)}"
        save(
            options.out,
            [
                Record(
                    "graphormer",
                    case + ("-dropout" if options.dropout else ""),
                    f"{len(packed)} graphs of {mean:.1f} nodes, {int(nodes.max())} at most",
                    "fwd+bwd",
                    "float32",
                    "padded" if other_side else f"gtkern-{options.backend}",
                    ms=sample.median * 1e3,
                    iqr_ms=sample.spread * 1e3,
                    turns=len(sample.turns),
                    peak_mib=peak / 2**20,
                    ratio=samples[1].ratio_to(samples[0]),
                    goal=math.nan if other_side else GOAL,
                    note="a step of training, the optimizer's included",
                    **shared,
                )
                for other_side, (sample, peak) in enumerate(zip(samples, peaks, strict=True))
            ],
        )
    Console(width=None if sys.stdout.isatty() else 120).print(view)
    print(f"outputs without dropout differ by {apart:.1e} of the largest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
