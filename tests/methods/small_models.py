"""Small networks of every kind, and graphs for them, for the tests of pruning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gtkern.data.motifs import motifs
from gtkern.data.packed import PackedGraphs
from gtkern.training.graph_settings import MODELS

SIZES: dict[str, dict[str, Any]] = {
    "graphgps": {"width": 16, "heads": 4, "layers": 3, "walk_steps": 3},
    "graphtrans": {"local_layers": 1, "local_width": 8, "width": 16, "layers": 3},
    "graphormer": {"width": 16, "heads": 4, "layers": 3, "feedforward": 16, "max_degree": 20},
    "light": {"width": 16, "heads": 4, "layers": 3, "path_width": 4, "head_width": 8},
}
NAMES = tuple(SIZES)


def make(name: str, **more: Any) -> tuple[nn.Module, PackedGraphs]:
    """A network in fp64 and in training, no parameter at 0, and graphs with what it needs."""
    model, settings_class = MODELS[name]
    settings = settings_class(**{**SIZES[name], **more})
    packed = motifs(0, graphs=6)
    model.encode(packed, settings)
    network = model(packed.node_categories, 4, settings, edge_features=packed.edge_categories)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.double().train(), packed


def output(model: nn.Module, packed: PackedGraphs) -> Tensor:
    """What the network gives the graphs in evaluation."""
    model.eval()
    with torch.no_grad():
        out: Tensor = model(packed.batch(range(len(packed))))
    model.train()
    return out


def train(model: nn.Module, packed: PackedGraphs, pruner: Any, steps: int) -> None:
    """Some steps of Adam, each followed by the pruner's."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-2)
    batch = packed.batch(range(len(packed)))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), batch.y).backward()
        optimizer.step()
        pruner.step(optimizer)
    # blocks that are left out take no step, and nothing takes two
    assert max(int(state["step"]) for state in optimizer.state.values()) == steps
