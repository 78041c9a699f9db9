"""Pictures of pruning: what is kept in each layer, how alike heads and layers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gtkern.methods.gtsp.pruner import attention_sites
from gtkern.methods.gtsp.similarity import head_distances, similarity_matrix
from gtkern.training import plots
from gtkern.training.run import RunFolder

__all__ = ["draw_all", "watched"]


def draw_all(
    folder: RunFolder,
    dense: nn.Module,
    compact: nn.Module,
    batch: Any,
    kept: Mapping[str, Mapping[str, float]],
) -> None:
    """Write kept.png, heads.png and layers.png to the folder's plots.

    Args:
        folder: of the run.
        dense, compact: the networks.
        batch: whose features are compared.
        kept: see JointPruner.kept.
    """
    if kept:
        with folder.replacing("plots/kept.png") as part:
            plots.shares(part, kept)
    heads, layers = [], []
    for title, network in (("dense", dense), ("compact", compact)):
        outputs, found = watched(network, batch)
        if found:
            groups = {name: value.size(1) for name, value in found.items()}
            distances = head_distances(list(found.values())).numpy()
            heads.append(plots.Matrix(title, distances, groups))
        alike = similarity_matrix(list(outputs.values())).numpy()
        layers.append(plots.Matrix(title, alike, dict.fromkeys(outputs, 1)))
    with folder.replacing("plots/heads.png") as part:
        plots.matrices(part, heads, "distance of heads, 1 - CKA", 1.0)
    with folder.replacing("plots/layers.png") as part:
        plots.matrices(part, layers, "likeness of layers, CKA", 1.0)


def watched(network: nn.Module, batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What layers and heads give in evaluation.

    Returns:
        By the layer's name, its output [N, C]; and that of its heads [N, H, D], where it has some.
    """
    outputs: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    hooks = []
    training = network.training
    with _watching_heads(network, heads):
        for site in attention_sites(network):

            def keep(_: nn.Module, __: Any, out: Any, name: str = site.name) -> None:
                outputs[name] = (out[0] if isinstance(out, tuple) else out).detach()

            hooks.append(site.layer.register_forward_hook(keep))
        network.eval()
        with torch.no_grad():
            network(batch)
    for hook in hooks:
        hook.remove()
    network.train(training)
    return outputs, heads


@contextmanager
def _watching_heads(network: nn.Module, heads: dict[str, Tensor]) -> Iterator[None]:
    before = []
    for site in attention_sites(network):
        attention = site.attention()
        if attention is not None:
            before.append((attention, attention.attend))
            attention.attend = _keeping(attention.attend, heads, site.name)
    try:
        yield
    finally:
        for attention, attend in before:
            attention.attend = attend


def _keeping(
    attend: Callable[..., Tensor], heads: dict[str, Tensor], name: str
) -> Callable[..., Tensor]:
    def kept(*given: Any, **options: Any) -> Tensor:
        out = attend(*given, **options)
        heads[name] = out.detach()
        return out

    return kept
