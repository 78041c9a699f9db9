"""What DeepGPT trains beside the head: a vector and some tokens for each prompted layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gtkern.nn import dropout

__all__ = ["INITS", "Prompts"]

INITS = ("uniform", "zero")
"""How the graph prompt begins."""


class Prompts(nn.Module):
    """Prefix tokens and graph prompts of some layers of a network.

    With `reparameterize` the tokens of a layer are made of trained rows E by an MLP of its own,
    which `fold` takes away after training::

        tokens = W2 tanh(W1 E + b1) + b2

    Args:
        layers: which layers of the network, by number, rising.
        width: C of the network.
        prefix_tokens: P, of each layer; 0: none.
        graph_prompt: whether a layer has a vector that is added to all its rows.
        reparameterize: whether tokens come from an MLP.
        graph_prompt_init: "uniform", in [0, 1), as the released code; or "zero", with which the
            network begins as it was.
        prefix_std: standard deviation of tokens, or of E, before training.
        dropout: of the elements of tokens, in training, in [0, 1).

    Attributes:
        layers: the same.
        prefix: [L, P, C] of the L layers above, or E; None without tokens.
        vector: [L, C]; None without graph prompts.
        project: L MLPs, or none.

    Raises:
        ValueError: an argument out of range.

    Reference: Shirkavand and Huang 2023 (DeepGPT), section 3; Li and Liang 2021, section 4.3, for
        the MLP.
    """

    prefix: nn.Parameter | None
    vector: nn.Parameter | None

    def __init__(
        self,
        layers: Sequence[int],
        width: int,
        *,
        prefix_tokens: int,
        graph_prompt: bool = True,
        reparameterize: bool = False,
        graph_prompt_init: str = "uniform",
        prefix_std: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(prefix_tokens, bool) or not isinstance(prefix_tokens, int):
            raise TypeError(f"prefix_tokens must be an integer, got {type(prefix_tokens).__name__}")
        if prefix_tokens < 0:
            raise ValueError(f"prefix_tokens must be at least 0, got {prefix_tokens}")
        if graph_prompt_init not in INITS:
            raise ValueError(
                f"graph_prompt_init must be 'uniform' or 'zero', got {graph_prompt_init!r}"
            )
        if not 0 <= prefix_std < math.inf:
            raise ValueError(f"prefix_std must be at least 0 and finite, got {prefix_std}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.layers, self.width, self.prefix_tokens = tuple(layers), width, prefix_tokens
        self.dropout = dropout
        count = len(self.layers)
        rows = vector = None
        if prefix_tokens and count:
            rows = nn.Parameter(prefix_std * torch.randn(count, prefix_tokens, width))
        if graph_prompt and count:
            first = torch.rand if graph_prompt_init == "uniform" else torch.zeros
            vector = nn.Parameter(first(count, width))
        self.register_parameter("prefix", rows)
        self.register_parameter("vector", vector)
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
            for _ in (self.layers if reparameterize and rows is not None else ())
        )

    @property
    def graph_prompt(self) -> bool:
        """Whether layers have a vector."""
        return self.vector is not None

    def tokens(self) -> list[Tensor | None]:
        """The tokens [P, C] of each layer in turn; in training with dropout."""
        if self.prefix is None:
            return [None] * len(self.layers)
        rows: list[Tensor] = list(self.prefix.unbind(0))
        if self.project:
            rows = [made(row) for made, row in zip(self.project, rows, strict=True)]
        return [dropout(row, self.dropout, self.training) for row in rows]

    def vectors(self) -> list[Tensor | None]:
        """The graph prompt [C] of each layer in turn."""
        if self.vector is None:
            return [None] * len(self.layers)
        return list(self.vector.unbind(0))

    def folded(self) -> Tensor | None:
        """The tokens [L, P, C] as they are after training; None without."""
        if self.prefix is None or not self.project:
            return None if self.prefix is None else self.prefix.detach()
        with torch.no_grad():
            pairs = zip(self.project, self.prefix, strict=True)
            return torch.stack([made(row) for made, row in pairs])

    def fold(self) -> Prompts:
        """Put the tokens in the place of the MLPs that made them; gives the module itself.

        Parameters change: an optimiser made before does not know them.
        """
        tokens = self.folded()
        if self.project and tokens is not None:
            self.prefix = nn.Parameter(tokens)
            self.project = nn.ModuleList()
        return self

    def extra_repr(self) -> str:
        """The sizes."""
        return (
            f"layers={list(self.layers)}, width={self.width}, prefix_tokens={self.prefix_tokens}, "
            f"graph_prompt={self.graph_prompt}"
        )
