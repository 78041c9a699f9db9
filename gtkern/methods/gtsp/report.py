"""What pruning brought: parameters, operations, time, memory and metric, before and after."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import nn

from gtkern.training import memory
from gtkern.training.flops import count_flops

__all__ = ["Figures", "figures_table", "measure", "measure_both"]

_WARM_UP, _REPEATS = 2, 9


@dataclass
class Figures:
    """What a network costs on a batch, and what it gives.

    Attributes:
        parameters: numbers that are stored. nonzero: those that are not 0.
        flops: of a forward pass in evaluation, as gtkern.training.flops counts them.
        training_flops: of a forward and a backward pass.
        seconds, training_seconds: of the same passes, medians.
        peak_bytes, training_peak_bytes: largest memory above that before a pass.
        train, val, test: metric on the splits; None where it was not measured.
    """

    parameters: int
    nonzero: int
    flops: int
    training_flops: int
    seconds: float
    training_seconds: float
    peak_bytes: int
    training_peak_bytes: int
    train: float | None = None
    val: float | None = None
    test: float | None = None


def measure(network: nn.Module, batch: Any) -> Figures:
    """Measure one network; its gradients and running statistics are left as they were."""
    (figures,) = _measure([network], batch)
    return figures


def measure_both(dense: nn.Module, compact: nn.Module, batch: Any) -> tuple[Figures, Figures]:
    """Measure two networks in turns, so that what else the machine does meets both alike."""
    first, second = _measure([dense, compact], batch)
    return first, second


def _measure(networks: Sequence[nn.Module], batch: Any) -> list[Figures]:
    device = next(networks[0].parameters()).device
    states = [
        {key: value.clone() for key, value in network.state_dict().items()} for network in networks
    ]
    training = [network.training for network in networks]

    def inference(network: nn.Module) -> None:
        network.eval()
        with torch.no_grad():
            network(batch)

    def step(network: nn.Module) -> None:
        network.train()
        network.zero_grad()
        network(batch).square().mean().backward()

    runs = (inference, step)
    seconds: dict[tuple[int, int], list[float]] = {}
    for repeat in range(_WARM_UP + _REPEATS):
        for kind, run in enumerate(runs):
            for at, network in enumerate(networks):
                began = time.perf_counter()
                run(network)
                _wait(device)
                if repeat >= _WARM_UP:
                    seconds.setdefault((at, kind), []).append(time.perf_counter() - began)
    found = []
    for at, network in enumerate(networks):
        peaks, flops = [], []
        for run in runs:
            network.zero_grad()
            flops.append(count_flops(functools.partial(run, network)))
            network.zero_grad()
            memory.reset_peak(device)
            before = memory.resident_bytes(device)
            run(network)
            peaks.append(max(0, memory.peak_bytes(device) - before))
        network.zero_grad()
        network.load_state_dict(states[at])
        network.train(training[at])
        values = list(network.parameters())
        found.append(
            Figures(
                parameters=sum(value.numel() for value in values),
                nonzero=sum(int((value != 0).sum()) for value in values),
                flops=flops[0],
                training_flops=flops[1],
                seconds=statistics.median(seconds[at, 0]),
                training_seconds=statistics.median(seconds[at, 1]),
                peak_bytes=peaks[0],
                training_peak_bytes=peaks[1],
            )
        )
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_ROWS: Mapping[str, tuple[str, float, str]] = {
    "parameters": ("parameters", 1, ",.0f"),
    "nonzero": ("not zero", 1, ",.0f"),
    "flops": ("forward, MFLOP", 1e6, ",.1f"),
    "training_flops": ("forward and backward, MFLOP", 1e6, ",.1f"),
    "seconds": ("forward, ms", 1e-3, ",.2f"),
    "training_seconds": ("forward and backward, ms", 1e-3, ",.2f"),
    "peak_bytes": ("forward, MiB", 2**20, ",.1f"),
    "training_peak_bytes": ("forward and backward, MiB", 2**20, ",.1f"),
    "train": ("train", 1, ".4f"),
    "val": ("val", 1, ".4f"),
    "test": ("test", 1, ".4f"),
}


def figures_table(title: str, dense: Figures, compact: Figures) -> Table:
    """Both networks' figures, and the compact one's share of the dense one's."""
    result = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    result.add_column("on one batch", no_wrap=True)
    for heading in ("dense", "compact", "compact/dense"):
        result.add_column(heading, justify="right", no_wrap=True)
    before, after = asdict(dense), asdict(compact)
    for key, (label, unit, form) in _ROWS.items():
        pair = (before[key], after[key])
        if pair == (None, None):
            continue
        cells = ["" if value is None else format(value / unit, form) for value in pair]
        of_metric = key in ("train", "val", "test")
        whole = pair[0] and pair[1] is not None and not of_metric
        share = f"{pair[1] / pair[0]:.3f}" if whole else ""
        result.add_row(label, *cells, share)
    return result
