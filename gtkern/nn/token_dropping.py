"""Attention over the tokens of each graph that a learned scorer keeps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern import _check, ops
from gtkern.ragged import PairIndex, Ragged

__all__ = ["TokenDroppingAttention"]

_MODES = ("gather", "mask", "released")


class TokenDroppingAttention(nn.Module):
    """Attention among the best tokens of each graph; the others get 0, and their residual stays.

    Formula, for the scores s = scorer(x)::

        gather:    out = scatter(attention(gather(x * gate)))
        mask:      out = attention(x * mask)

    with gate and mask of `gtkern.ops.select_tokens`: 1 for what is kept, 0 for what is not, and the
    gradient of a softmax over the graph. In "gather" only kept tokens are projected and compared:
    the cost of attention falls with the square of the ratio. In "mask" nothing is saved: a dropped
    token is a row of zeros that still attends and is attended to.

    "released" is the mask of GTSP's released code, for parity with what was trained by it: graphs
    are padded to the longest of the batch, the padding takes part in the softmax and in the choice
    of int(ratio * longest) places, the last place is always kept, and there is noise in evaluation
    too. What is kept of a graph then depends on its batch.

    Args:
        attention: RaggedMultiheadAttention, or a module of the same call.
        ratio: the share of a graph's tokens to keep, in (0, 1].
        mode: "gather", "mask" or "released".
        temperature: of the softmax, positive.
        noise: whether the choice is drawn, by Gumbel noise, in training.
        always_keep: how many rows are always kept at each graph's begin and at its end: tokens that
            are no nodes. They count towards what is kept. "released" ignores it.

    Attributes:
        scorer: Linear(C, 1).

    Reference: Liu et al. 2023 (GTSP), section 4.1.
    """

    def __init__(
        self,
        attention: nn.Module,
        ratio: float,
        *,
        mode: str = "gather",
        temperature: float = 1.0,
        noise: bool = True,
        always_keep: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], got {ratio}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if len(always_keep) != 2 or min(always_keep) < 0:
            raise ValueError(
                f"always_keep must be two numbers, none negative, got {tuple(always_keep)}"
            )
        self.attention, self.ratio, self.mode = attention, ratio, mode
        self.temperature, self.noise = temperature, noise
        self.always_keep = (always_keep[0], always_keep[1])
        like = next(attention.parameters())
        self.scorer = nn.Linear(like.size(-1), 1, device=like.device, dtype=like.dtype)

    def forward(
        self,
        x: Tensor,
        ragged: Ragged,
        bias: Sequence[tuple[PairIndex, Tensor]] = (),
        prefix_k: Tensor | None = None,
        prefix_v: Tensor | None = None,
        prefix_set: Tensor | None = None,
    ) -> Tensor:
        """See RaggedMultiheadAttention.

        Args:
            x: [N, C].
            ragged: the graphs.
            bias: of all tokens' pairs; see gtkern.ops.ragged_attention.
            prefix_k, prefix_v: [P, H, D]; keys and values that every kept token sees besides.
            prefix_set: int64 [G]: the set of them, then [S, P, H, D], that a graph's tokens see.

        Returns:
            [N, C].
        """
        # under autocast the scores are narrower than the rows that their gate multiplies
        score = self.scorer(x).squeeze(1).to(x.dtype)
        prefix = (prefix_k, prefix_v, prefix_set)
        if self.mode == "released":
            masked = x * self._released_mask(score, ragged)[:, None]
            every: Tensor = self.attention(masked, ragged, bias, *prefix)
            return every
        noise = "gumbel" if self.noise and self.training else None
        select = functools.partial(
            ops.select_tokens,
            score,
            ragged,
            always_keep=self._kept_rows(ragged),
            noise=noise,
            temperature=self.temperature,
            seed=_check.seed("seed", None) if noise else None,
        )
        selection = select(ratio=self.ratio)
        if self.mode == "mask":
            # of dropped tokens too the mask has the gradient: keeping everything gives it to all
            mask = select(ratio=1.0).gate - (selection.position < 0).to(x.dtype)
            every = self.attention(x * mask[:, None], ragged, bias, *prefix)
            return every
        rows = ops.gather_tokens(x, selection, selection.gate)
        among = [(ops.gather_pairs(index, selection), table) for index, table in bias]
        out = self.attention(rows, selection.kept, among, *prefix)
        return ops.scatter_tokens(out, selection)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a prefix; see RaggedMultiheadAttention."""
        inner: Any = self.attention
        both: tuple[Tensor, Tensor] = inner.keys_and_values(x)
        return both

    def _kept_rows(self, ragged: Ragged) -> Tensor | None:
        """bool [N]: the first and the last rows of each graph, as many as always_keep says."""
        first, last = self.always_keep
        if not first and not last:
            return None
        row = torch.arange(ragged.num_nodes, device=ragged.device)
        graph = ragged.batch()
        return (row < ragged.ptr[graph] + first) | (row >= ragged.ptr[graph + 1] - last)

    def _released_mask(self, score: Tensor, ragged: Ragged) -> Tensor:
        """[N]: the mask of the padded batch, of its places with a node."""
        place = torch.arange(ragged.max_nodes, device=score.device)
        real = place < ragged.sizes()[:, None]
        # a row of zeros is scored by the offset alone
        padded = self.scorer.bias.to(score.dtype).expand(real.shape).masked_scatter(real, score)
        noise = -torch.empty_like(padded).exponential_().log()
        logit = (functional.log_softmax(padded, dim=1) + noise) / self.temperature
        y = torch.softmax(logit, dim=1)
        kept = y.topk(int(ragged.max_nodes * self.ratio), dim=1).indices
        hard = torch.zeros_like(y).scatter(1, kept, 1.0)
        mask = hard - y.detach() + y
        mask = torch.where(place == ragged.max_nodes - 1, 1.0, mask)
        return mask[real]

    def extra_repr(self) -> str:
        """The share kept, and how."""
        return f"ratio={self.ratio}, mode={self.mode}, always_keep={self.always_keep}"
