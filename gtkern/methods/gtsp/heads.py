"""Attention heads: scored while the model trains, exchanged, and cut out of the projections."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gtkern.methods.gtsp.pruner import (
    AttentionSite,
    Pruner,
    Schedule,
    attention_sites,
    check_ratio,
    clear_moments,
)
from gtkern.nn import RaggedMultiheadAttention
from gtkern.ragged import Ragged

__all__ = ["GatedHeads", "HeadPruner"]


class GatedHeads(nn.Module):
    """Attention whose heads can be shut; it measures what each of them is worth.

    With o_h what head h gives before the output projection, g_h the gradient of the loss by it, and
    sums over the nodes and channels of a graph, the measures of a head are means over the graphs
    and steps since the last `forget`::

        importance_h = | Σ g_h o_h |        growth_h = Σ | g_h |

    Args:
        attend: ragged_attention, or a function of the same arguments.
        heads: H.

    Attributes:
        mask: bool [H]; whether a head is open. Part of the state dict.
        importance, growth: sums over the steps, float32 [H]. steps: how many.

    Reference: Michel et al. 2019, eq. 3, for the importance; Liu et al. 2023 (GTSP), section 4.2.
    """

    mask: Tensor
    importance: Tensor
    growth: Tensor

    def __init__(self, attend: Callable[..., Tensor], heads: int) -> None:
        super().__init__()
        self.attend = attend
        self.steps = 0
        self.register_buffer("mask", torch.ones(heads, dtype=torch.bool))
        self.register_buffer("importance", torch.zeros(heads), persistent=False)
        self.register_buffer("growth", torch.zeros(heads), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ragged: Ragged, **options: Any) -> Tensor:
        """See gtkern.ops.ragged_attention; shut heads give 0."""
        out = self.attend(q, k, v, ragged, **options)
        out = out * self.mask[:, None].to(out.dtype)
        if self.training and out.requires_grad:
            value = out.detach()
            out.register_hook(lambda gradient: self._measure(gradient, value, ragged))
        return out

    def forget(self) -> None:
        """Begin the measures anew."""
        self.steps = 0
        self.importance.zero_()
        self.growth.zero_()

    def _measure(self, gradient: Tensor, value: Tensor, ragged: Ragged) -> None:
        taylor, norm = (gradient * value).sum(2), gradient.abs().sum(2)
        graphs = max(ragged.num_graphs, 1)
        by_graph = torch.segment_reduce(taylor, "sum", offsets=ragged.ptr, axis=0)
        self.importance += by_graph.abs().sum(0).to(self.importance) / graphs
        self.growth += norm.sum(0).to(self.growth) / graphs
        self.steps += 1

    def extra_repr(self) -> str:
        """Which heads are open."""
        return f"open={self.mask.nonzero().flatten().tolist()}"


class _Gate(NamedTuple):
    site: AttentionSite
    gate: GatedHeads


class HeadPruner(Pruner):
    """Keeps a share of every layer's heads, and exchanges heads while it may.

    At each action the least important open heads are shut until as many are open as the schedule
    wants; then a share of those is shut, and as many are opened that have the largest gradient,
    those just shut among them.

    Deviations from the released code: the measures are those of true heads, before the output
    projection mixes them, and means over all steps since the last action; a shut head gives 0,
    where there it gives its offsets; a head that opens again has the weights it had; the optimiser
    steps once for each batch, and forgets the moments of heads that open or shut. "dense" starts
    with all heads, for trained models; the paper's "random" starts with the kept share.

    Args:
        ratio: of a layer's heads that are kept, in (0, 1]; int(ratio H), at least one.
        schedule: when heads are shut and exchanged.
        start: "dense": all heads are open at first; "random": the kept share, drawn at random.
        exchange: share of the open heads that is exchanged in each action, in [0, 1]; 0: none.
        seed: of "random".

    Raises:
        TypeError, ValueError: an argument of the wrong kind or range.

    Reference: Liu et al. 2023 (GTSP), section 4.2; Evci et al. 2020 (RigL) for the exchange.
    """

    kind = "heads"

    def __init__(
        self,
        ratio: float,
        schedule: Schedule,
        *,
        start: str = "dense",
        exchange: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__(schedule)
        self.ratio = check_ratio("ratio", ratio)
        if start not in ("dense", "random"):
            raise ValueError(f"start must be 'dense' or 'random', got {start!r}")
        if not 0 <= exchange <= 1:
            raise ValueError(f"exchange must be in [0, 1], got {exchange}")
        self.start, self.exchange, self.seed = start, float(exchange), seed
        self._gates: list[_Gate] = []

    def kept(self) -> Mapping[str, float]:
        """The share of open heads by layer."""
        return {site.name: int(gate.mask.sum()) / gate.mask.numel() for site, gate in self._gates}

    def open_heads(self) -> Mapping[str, list[int]]:
        """The open heads by layer."""
        return {site.name: gate.mask.nonzero().flatten().tolist() for site, gate in self._gates}

    def state_dict(self) -> dict[str, Any]:
        """The steps, and the measures since the last action."""
        measures = {
            site.name: (gate.steps, gate.importance.clone(), gate.growth.clone())
            for site, gate in self._gates
        }
        return {**super().state_dict(), "measures": measures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state)
        for site, gate in self._gates:
            gate.steps, importance, growth = state["measures"][site.name]
            gate.importance.copy_(importance)
            gate.growth.copy_(growth)

    def _prepare(self, model: nn.Module) -> None:
        gates = []
        generator = torch.Generator().manual_seed(self.seed)
        for site in attention_sites(model):
            attention = site.attention()
            if attention is None:
                continue
            if attention.heads is not None:
                raise ValueError(
                    f"{site.name}.attention cannot be pruned: it was made compact, with heads "
                    f"{list(attention.heads)}; prune the dense model"
                )
            if isinstance(attention.attend, GatedHeads):
                raise ValueError(f"{site.name}.attention cannot be pruned: its heads are already")
            gate = GatedHeads(attention.attend, attention.num_heads)
            gate.to(attention.in_proj_weight.device)
            count = self._count(site, attention.num_heads)
            if self.start == "random":
                order = torch.randperm(attention.num_heads, generator=generator)
                gate.mask[order[count:]] = False
            gates.append(_Gate(site, gate))
        for site, gate in gates:
            attention = site.attention()
            assert attention is not None
            # beside a module there may be no plain attribute of the same name
            del attention.attend
            attention.attend = gate.train(attention.training)
        self._gates = gates

    def _count(self, site: AttentionSite, heads: int) -> int:
        # 0.3 * 10 is below 3 in binary
        count = int(self.ratio * heads + 1e-9)
        if count < 1:
            raise ValueError(
                f"{site.name}.attention cannot be pruned: of its {heads} heads a ratio of "
                f"{self.ratio} keeps none; ratio must be at least {1 / heads:g}"
            )
        return count

    def _step(self, optimizer: torch.optim.Optimizer | None) -> None:
        assert self.schedule is not None
        if not self.schedule.due(self.steps):
            return
        for site, gate in self._gates:
            heads, last = gate.mask.numel(), self._count(site, gate.mask.numel())
            if gate.steps == 0:
                # nothing was learned since the last action
                continue
            share = 1.0 if self.start == "random" else self.schedule.share(self.steps)
            count = heads - math.floor((heads - last) * share + 1e-9)
            before = gate.mask.clone()
            gate.mask.copy_(_chosen(gate, count, self.exchange))
            gate.forget()
            attention = site.attention()
            assert attention is not None
            _forget_heads(optimizer, attention, before ^ gate.mask)

    def _compact(self) -> None:
        for site, gate in self._gates:
            attention = site.attention()
            if attention is None:
                continue
            del attention.attend
            attention.attend = gate.attend
            heads = gate.mask.nonzero().flatten().tolist()
            if len(heads) < attention.num_heads:
                site.replace(attention.keep_heads(heads))
        self._gates = []


def _chosen(gate: GatedHeads, count: int, exchange: float) -> Tensor:
    """The heads that are open after an action, bool [H]: `count` of them."""
    open_ = gate.mask.nonzero().flatten()
    # ties go to the lower head
    order = gate.importance[open_].sort(descending=True, stable=True).indices
    open_ = open_[order[:count]]
    exchanged = min(math.ceil(exchange * count - 1e-9), open_.numel())
    mask = torch.zeros_like(gate.mask)
    mask[open_[: open_.numel() - exchanged]] = True
    growth = gate.growth.masked_fill(mask, -math.inf)
    grown = growth.sort(descending=True, stable=True).indices
    mask[grown[: count - int(mask.sum())]] = True
    return mask


def _forget_heads(
    optimizer: torch.optim.Optimizer | None, attention: RaggedMultiheadAttention, heads: Tensor
) -> None:
    """Clear the optimiser's moments of the weights of some heads, bool [H]."""
    lanes = heads.repeat_interleave(attention.head_dim)
    rows = lanes.repeat(3)
    clear_moments(optimizer, attention.in_proj_weight, rows[:, None])
    clear_moments(optimizer, attention.out_proj.weight, lanes)
    if attention.in_proj_bias is not None:
        clear_moments(optimizer, attention.in_proj_bias, rows)
