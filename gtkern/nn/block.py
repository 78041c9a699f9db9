"""The transformer block that every attention layer here sits in."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gtkern.nn.dropout import dropout_add, relu_dropout
from gtkern.nn.norm import BatchNorm, GraphNorm

__all__ = ["TransformerBlock", "make_norm"]

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": BatchNorm,
    "graph": GraphNorm,
    "none": nn.Identity,
}


def make_norm(norm: str, width: int) -> nn.Module:
    """A norm over `width` channels.

    Args:
        norm: "batch" (BatchNorm), "graph" (GraphNorm over one graph) or "none".
        width: C.
    """
    if norm not in _NORMS:
        raise ValueError(f"norm must be 'batch', 'graph' or 'none', got {norm!r}")
    return _NORMS[norm](width)


class TransformerBlock(nn.Module):
    """What surrounds an attention layer: residual, norm, feed-forward, residual, norm.

    Formula::

        y   = norm(x + dropout(attended))
        out = norm(y + dropout(W2 dropout(relu(W1 y))))

    Args:
        width: C; the feed-forward part is 2 C wide.
        norm: see make_norm.
        dropout: probability in [0, 1).

    Reference: Vaswani et al. 2017, with the norm after each residual.
    """

    def __init__(self, width: int, *, norm: str = "batch", dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.dropout = dropout
        self.attention_norm = make_norm(norm, width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.output_norm = make_norm(norm, width)

    def forward(self, x: Tensor, attended: Tensor, beside: Tensor | None = None) -> Tensor:
        """From x [N_src, C] and the attention's output [N_dst, C]; gives [N_dst, C].

        The destinations are the first N_dst rows of x. `beside` [N_dst, C] is added before the
        feed-forward part.
        """
        x = self.attention_norm(self._drop_and_add(attended, x[: attended.size(0)]))
        if beside is not None:
            x = x + beside
        hidden = relu_dropout(self.widen(x), self.dropout, self.training)
        out: Tensor = self.output_norm(self._drop_and_add(self.narrow(hidden), x))
        return out

    def _drop_and_add(self, x: Tensor, residual: Tensor) -> Tensor:
        return dropout_add(x, residual, self.dropout, self.training)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"dropout={self.dropout}"
