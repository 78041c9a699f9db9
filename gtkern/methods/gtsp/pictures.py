"""Pictures of pruning: what is kept of layers and graphs, how alike heads and layers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gtkern.methods.gtsp import token_pictures
from gtkern.methods.gtsp.pruner import attention_sites
from gtkern.methods.gtsp.similarity import head_distances, similarity_matrix
from gtkern.models.light import LiGhT
from gtkern.nn import TokenDroppingAttention
from gtkern.ragged import Ragged
from gtkern.training import plots
from gtkern.training.run import RunFolder

__all__ = ["draw_all", "kept_counts", "watched"]


def draw_all(
    folder: RunFolder,
    dense: nn.Module,
    compact: nn.Module,
    batch: Any,
    kept: Mapping[str, Mapping[str, float]],
    smiles: Sequence[str] = (),
) -> None:
    """Write kept.png, heads.png and layers.png to the folder's plots; tokens.png where some drop.

    Args:
        folder: of the run.
        dense, compact: the networks.
        batch: whose features are compared.
        kept: see JointPruner.kept.
        smiles: of the batch's graphs, where they are molecules.
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
    counts = kept_counts(compact, batch)
    if counts is not None:
        with folder.replacing("plots/tokens.png") as part:
            token_pictures.draw(part, batch, *counts, smiles=smiles)


def kept_counts(network: nn.Module, batch: Any) -> tuple[Tensor, int] | None:
    """In how many layers each node's token is kept in evaluation, int64 [N], and of how many.

    None where no layer drops tokens, or tokens are no nodes (LiGhT's are bonds).
    """
    blocks = [part for part in network.modules() if isinstance(part, TokenDroppingAttention)]
    if not blocks or isinstance(network, LiGhT):
        return None
    graph = Ragged.from_ptr(batch.ptr).batch()
    counts = torch.zeros(batch.x.size(0), dtype=torch.int64, device=batch.x.device)

    def count(block: Any, given: tuple[Any, ...], out: Tensor) -> None:
        x, ragged = given[:2]
        before, _ = block.always_keep
        # a dropped token's row is 0
        position = torch.arange(batch.x.size(0), device=x.device) - batch.ptr[graph]
        row = ragged.ptr[graph] + before + position
        counts.add_((out[row] != 0).any(1))

    hooks = [block.register_forward_hook(count) for block in blocks]
    training = network.training
    network.eval()
    with torch.no_grad():
        network(batch)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return counts, len(blocks)


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
