"""The transformer layer over the graphs of a packed batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from gtkern import ops
from gtkern.nn.dropout import dropout
from gtkern.nn.prompt import Prompt
from gtkern.nn.ragged_attention import RaggedMultiheadAttention
from gtkern.ragged import PairIndex, Ragged

__all__ = ["TransformerLayer", "initialize_as_bert"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
}


class TransformerLayer(nn.Module):
    """Attention inside each graph, then a feed-forward part, each with residual and LayerNorm.

    Formula, with W1, W2 the feed-forward part's layers::

        post:  y = norm1(x + drop(attend(x)));   out = norm2(y + drop(W2 act(W1 y)))
        pre:   y = x + drop(attend(norm1(x)));   out = y + drop(W2 act(W1 norm2(y)))

    A prompt's vector is added to x before all that.

    Args:
        width: C.
        heads: H; divides width.
        feedforward: width between W1 and W2.
        norm: "post" or "pre".
        dropout: of what a residual adds, in [0, 1).
        attention_dropout, activation_dropout: of the attention weights, and of act(W1 y).
        activation: "relu" or "gelu".
        scale: multiplies the scores; default (C / H) ** -0.5.
        attend: ragged_attention, or a function of the same arguments.

    Attributes:
        attention: a RaggedMultiheadAttention, or a module of the same call; None: attend(..) is 0.

    Reference: Vaswani et al. 2017; Xiong et al. 2020 for "pre".
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        *,
        norm: str = "post",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        activation: str = "relu",
        scale: float | None = None,
        attend: Callable[..., Tensor] = ops.ragged_attention,
    ) -> None:
        super().__init__()
        if norm not in ("post", "pre"):
            raise ValueError(f"norm must be 'post' or 'pre', got {norm!r}")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be 'gelu' or 'relu', got {activation!r}")
        for name, value in (("dropout", dropout), ("activation_dropout", activation_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        self.norm, self.activation = norm, activation
        self.dropout, self.activation_dropout = dropout, activation_dropout
        self.attention: nn.Module | None = RaggedMultiheadAttention(
            width, heads, dropout=attention_dropout, scale=scale, attend=attend
        )
        self.attention_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, feedforward)
        self.narrow = nn.Linear(feedforward, width)
        self.output_norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        ragged: Ragged,
        bias: Sequence[tuple[PairIndex, Tensor]] = (),
        prompt: Prompt | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: [N, C].
            ragged: the graphs.
            bias: of the scores; see gtkern.ops.ragged_attention.
            prompt: a vector for all rows, and keys and values that they see besides their graph.

        Returns:
            [N, C].
        """
        before = self.norm == "pre"
        given = Prompt() if prompt is None else prompt
        x = given.added_to(x, ragged)
        if self.attention is not None:
            attended = self.attention(
                self.attention_norm(x) if before else x, ragged, bias, *given.prefix()
            )
            x = x + dropout(attended, self.dropout, self.training)
        y = self.output_norm(x) if before else (x := self.attention_norm(x))
        hidden = _ACTIVATIONS[self.activation](self.widen(y))
        hidden = dropout(hidden, self.activation_dropout, self.training)
        x = x + dropout(self.narrow(hidden), self.dropout, self.training)
        out: Tensor = x if before else self.output_norm(x)
        return out

    def prefix(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [P, H, D] of tokens [P, C] that are read like rows of x.

        Raises:
            ValueError: the layer has no attention.
        """
        attention: Any = self.attention
        if attention is None:
            raise ValueError("prefix() needs attention, and the layer has none")
        rows = self.attention_norm(tokens) if self.norm == "pre" else tokens
        both: tuple[Tensor, Tensor] = attention.keys_and_values(rows)
        return both

    def extra_repr(self) -> str:
        """The sizes."""
        return f"norm={self.norm}, activation={self.activation}, dropout={self.dropout}"


def initialize_as_bert(network: nn.Module, std: float = 0.02) -> None:
    """Draw the weights of projections and embeddings from N(0, std²) and set offsets to 0.

    Args:
        network: of Linear, Embedding and RaggedMultiheadAttention; other parameters stay.
        std: BERT's 0.02 suits a width of about 1 / std²; much narrower networks hardly hear their
            own layers with it.

    Reference: Devlin et al. 2019 (BERT), whose released code does so.
    """
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, RaggedMultiheadAttention):
            nn.init.normal_(module.in_proj_weight, std=std)
