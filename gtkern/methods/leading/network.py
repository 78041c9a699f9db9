"""The network: a language model, and the graph part on what it says of each node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import GATConv, GCNConv

from gtkern import ops
from gtkern.methods.leading.blocks import Block
from gtkern.methods.leading.settings import PropagationSettings

__all__ = ["GraphPart", "Start", "TextGraphNetwork"]

GAT_HEADS = 4
LEAST_DEVIATION = 0.01
"""Of a feature, as a share of the root mean square of all."""


class Start(NamedTuple):
    """Where the lazy solver begins (Xue et al. 2023, LazyGNN), for the n nodes of a block.

    Attributes:
        z, g: float32 [n, C]; solution and adjoint of the last time.
        beta, theta: float32 [n]; share of X and of the incoming gradient; 1 for a node without a
            last time.
        keep: is given the solution [n, C]. keep_gradient: is given the adjoint [n, C].
    """

    z: Tensor
    g: Tensor
    beta: Tensor
    theta: Tensor
    keep: Callable[[Tensor], None]
    keep_gradient: Callable[[Tensor], None]


class GraphPart(nn.Module):
    """X = relu(W x) of standardised x, its propagation over a graph, and a linear head.

    Args:
        features: width of a node's vector.
        classes: width of the output.
        settings: see PropagationSettings.
        backend: of the propagation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, features: int, classes: int, settings: PropagationSettings, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.settings = settings
        self.backend = backend
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.project = nn.Linear(features, settings.width)
        self.convolution: nn.Module | None = None
        if settings.kind == "gcn":
            # the weights of the edges are normalised already
            self.convolution = GCNConv(settings.width, settings.width, normalize=False)
        elif settings.kind == "gat":
            if settings.width % GAT_HEADS:
                raise ValueError(
                    f"width must be a multiple of {GAT_HEADS} with gat, got {settings.width}"
                )
            self.convolution = GATConv(
                settings.width, settings.width // GAT_HEADS, GAT_HEADS, add_self_loops=False
            )
        self.head = nn.Linear(settings.width, classes)

    def standardize(self, x: Tensor) -> None:
        """Take mean and deviation of the features of all nodes, [N, features], which stay.

        Vectors of language models have much in common, and what tells them apart is small. Some
        have features that hardly ever change (MiniLM: by 1e-33), which must not be blown up.
        """
        deviation, self.mean = torch.std_mean(x, dim=0, correction=0)
        least = LEAST_DEVIATION * float(deviation.square().mean().sqrt())
        self.deviation = deviation.clamp(min=least) if least > 0 else torch.ones_like(deviation)

    def forward(self, x: Tensor, block: Block, start: Start | None = None) -> Tensor:
        """Logits of every node of a block.

        Args:
            x: [n, features].
            block: its edges. start: of the implicit layer, for `sweeps` steps; None: it is solved
                to the tolerance.
        """
        z = self.solution(x, block, start)
        logits: Tensor = self.head(self._drop(z))
        return logits

    def solution(self, x: Tensor, block: Block, start: Start | None = None) -> Tensor:
        """Z [n, C], of which the logits are a linear function; see `forward`."""
        kind = self.settings.kind
        z = functional.relu(self.project(self._drop((x - self.mean) / self.deviation)))
        if kind == "implicit":
            return self._propagate(z, block, start)
        if self.convolution is None:
            return z
        extra = (block.weight,) if kind == "gcn" else ()
        return functional.relu(self.convolution(z, block.edge_index, *extra))

    def _drop(self, values: Tensor) -> Tensor:
        return functional.dropout(values, self.settings.dropout, self.training)

    def _propagate(self, x: Tensor, block: Block, start: Start | None) -> Tensor:
        settings = self.settings
        if start is None:
            z: Tensor = ops.propagate(
                block.graph,
                x,
                settings.alpha,
                weight=block.weight,
                tol=settings.tol,
                backend=self.backend,
            )
            return z
        if x.requires_grad:
            # the gradient of X is the adjoint itself
            x.register_hook(start.keep_gradient)
        z = ops.propagate(
            block.graph,
            x,
            settings.alpha,
            weight=block.weight,
            steps=settings.sweeps,
            method="power",
            z0=start.z,
            beta=start.beta,
            g0=start.g,
            theta=start.theta,
            backend=self.backend,
        )
        start.keep(z.detach())
        return z


class TextGraphNetwork(nn.Module):
    """A language model under a graph part.

    Args:
        language_model: see LanguageModel. graph_part: see GraphPart.
    """

    def __init__(self, language_model: Any, graph_part: GraphPart) -> None:
        super().__init__()
        self.language_model = language_model
        self.graph_part = graph_part

    def encode(self, tokens: Any, nodes: Tensor, dtype: torch.dtype) -> Tensor:
        """The language model's vectors [b, width] of some nodes, with gradient."""
        with torch.autocast(nodes.device.type, dtype, enabled=dtype != torch.float32):
            encoded: Tensor = self.language_model(tokens, nodes)
        return encoded.float()

    def standardize(self, x: Tensor) -> None:
        """Take mean and deviation of the features of all nodes, [N, features], which stay.

        Vectors of language models have much in common, and what tells them apart is small. Some
        have features that hardly ever change (MiniLM: by 1e-33), which must not be blown up.
        """
        deviation, self.mean = torch.std_mean(x, dim=0, correction=0)
        least = LEAST_DEVIATION * float(deviation.square().mean().sqrt())
        self.deviation = deviation.clamp(min=least) if least > 0 else torch.ones_like(deviation)

    def forward(self, x: Tensor, block: Block, start: Start | None = None) -> Tensor:
        """See GraphPart."""
        logits: Tensor = self.graph_part(x, block, start)
        return logits
