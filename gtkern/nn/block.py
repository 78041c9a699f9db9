"""The transformer block that every attention layer here sits in."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from gtkern.nn.dropout import dropout
from gtkern.nn.norm import BatchNorm, GraphNorm

__all__ = ["TransformerBlock"]

NORMS = ("batch", "graph", "none")


class TransformerBlock(nn.Module):
    """What surrounds an attention layer: residual, norm, feed-forward, residual, norm.

    Formula::

        y   = norm(x + dropout(attended))
        out = norm(y + dropout(W2 dropout(relu(W1 y))))

    Args:
        width: C; the feed-forward part is 2 C wide.
        norm: "batch" (BatchNorm), "graph" (GraphNorm over one graph) or "none".
        dropout: probability in [0, 1).

    Reference: Vaswani et al. 2017, with the norm after each residual.
    """

    def __init__(self, width: int, *, norm: str = "batch", dropout: float = 0.0) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be 'batch', 'graph' or 'none', got {norm!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        make_norm = {"batch": BatchNorm, "graph": GraphNorm, "none": nn.Identity}[norm]
        self.dropout = dropout
        self.attention_norm = make_norm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.output_norm = make_norm(width)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """From x [N_src, C] and the attention's output [N_dst, C]; gives [N_dst, C].

        The destinations are the first N_dst rows of x.
        """
        x = self.attention_norm(x[: attended.size(0)] + self._drop(attended))
        hidden = self._drop(functional.relu(self.widen(x)))
        out: Tensor = self.output_norm(x + self._drop(self.narrow(hidden)))
        return out

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"dropout={self.dropout}"
