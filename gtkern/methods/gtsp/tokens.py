"""Tokens: every attention looks only at those of each graph that its scorer keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from gtkern.methods.gtsp.pruner import AttentionSite, Pruner, Schedule, attention_sites, check_ratio
from gtkern.models.graphgps import GraphGPS
from gtkern.models.graphormer import Graphormer
from gtkern.models.graphtrans import GraphTrans
from gtkern.models.light import LiGhT
from gtkern.nn import TokenDroppingAttention

__all__ = ["TokenPruner"]


class TokenPruner(Pruner):
    """Keeps a share of each graph's tokens in every attention.

    A scorer for each layer is trained with the model: prepare it before the optimiser is made.
    Message passing and feed-forward parts still see all tokens; dropped ones skip the attention. A
    graph's CLS token and virtual nodes are always kept. Which tokens those are follows from the
    graph, so that, unlike of other dimensions, nothing of the model is cut out: the compact model
    keeps its scorers, and computes with the kept tokens alone.

    Deviations from the released code: dropped tokens are removed, not set to zero; the share is of
    each graph, not of the longest in its batch; padding is not scored; there is no noise in
    evaluation. mode="released" has all of that as it was; a model trained so, or with "mask", does
    not compute the same once it is compact.

    Args:
        ratio: of the tokens that are kept, in (0, 1]; one number, or one for each layer.
        schedule: None: from the first step on; else the share falls from 1 to the ratio, cubically.
        mode: "gather", "mask" or "released"; see gtkern.nn.TokenDroppingAttention.
        temperature: of the softmax that gradients go through.
        noise: whether the choice is drawn in training.
        always_keep: rows that are always kept at each graph's begin and at its end; None: those
            that the model adds to the nodes.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or range.

    Reference: Liu et al. 2023 (GTSP), section 4.1.
    """

    kind = "tokens"

    def __init__(
        self,
        ratio: float | Sequence[float],
        schedule: Schedule | None = None,
        *,
        mode: str = "gather",
        temperature: float = 1.0,
        noise: bool = True,
        always_keep: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(schedule)
        self.ratio: float | list[float]
        if isinstance(ratio, Sequence):
            self.ratio = [check_ratio(f"ratio[{at}]", one) for at, one in enumerate(ratio)]
        else:
            self.ratio = check_ratio("ratio", ratio)
        self.mode, self.temperature, self.noise = mode, temperature, noise
        self.always_keep = always_keep
        self._blocks: list[tuple[AttentionSite, TokenDroppingAttention, float]] = []

    def kept(self) -> Mapping[str, float]:
        """The share of tokens that each layer's attention keeps."""
        return {site.name: block.ratio for site, block, _ in self._blocks}

    def restored(self) -> None:
        """Take up the share of the steps so far."""
        super().restored()
        self._set_ratios()

    def _prepare(self, model: nn.Module) -> None:
        sites = [site for site in attention_sites(model) if site.attention() is not None]
        ratios = self.ratio if isinstance(self.ratio, list) else [self.ratio] * len(sites)
        if len(ratios) != len(sites):
            raise ValueError(
                f"ratio must have one number for each of the {len(sites)} layers with attention, "
                f"got {len(ratios)}"
            )
        for site in sites:
            if any(isinstance(part, TokenDroppingAttention) for part in site.layer.modules()):
                raise ValueError(f"{site.name} cannot be pruned: its tokens already are")
        always = _added_tokens(model) if self.always_keep is None else self.always_keep
        made = [
            TokenDroppingAttention(
                site.layer.get_submodule("attention"),
                ratio,
                mode=self.mode,
                temperature=self.temperature,
                noise=self.noise,
                always_keep=always,
            )
            for site, ratio in zip(sites, ratios, strict=True)
        ]
        for site, block in zip(sites, made, strict=True):
            site.wrap(block)
        self._blocks = list(zip(sites, made, ratios, strict=True))
        self._set_ratios()

    def _step(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._set_ratios()

    def _compact(self) -> None:
        for _, block, ratio in self._blocks:
            block.mode, block.ratio = "gather", ratio

    def _set_ratios(self) -> None:
        if self.schedule is None:
            return
        for _, block, ratio in self._blocks:
            block.ratio = self.schedule.kept(self.steps, ratio)


def _added_tokens(model: nn.Module) -> tuple[int, int]:
    """How many tokens a model adds to each graph, before its nodes and after them."""
    if isinstance(model, GraphGPS):
        return 0, 0
    if isinstance(model, Graphormer):
        return 1, 0
    if isinstance(model, GraphTrans):
        return 0, 1
    if isinstance(model, LiGhT):
        return 0, len(model.virtual)
    raise TypeError(
        "always_keep must be given where the model is none of GraphGPS, GraphTrans, Graphormer, "
        f"LiGhT, got None for {type(model).__name__}"
    )
