"""The message-passing layers of the models of graphs. Loads PyG, which takes more than a second."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn.conv import GINConv, GINEConv
from torch_geometric.utils import scatter

from gtkern.nn.dropout import dropout
from gtkern.nn.norm import BatchNorm

__all__ = ["LOCAL", "GatedGCN", "GraphConvolution", "IsomorphismNetwork"]


class IsomorphismNetwork(nn.Module):
    """GIN, or GINE where edges carry channels, with a residual.

    Formula, m = x_j for "gin" and relu(x_j + e_ij) for "gine"::

        out_i = x_i + drop(W2 relu(W1 (x_i + Σ_j m)))

    Args:
        width: C.
        dropout: in [0, 1).
        edges: whether the messages take channels of the edges.

    Reference: Xu et al. 2019 (GIN), eq. 4.1; Hu et al. 2020 (GINE); both layers are PyG's.
    """

    def __init__(self, width: int, dropout: float, *, edges: bool) -> None:
        super().__init__()
        layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.dropout = dropout
        self.convolution = GINEConv(layers) if edges else GINConv(layers)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """From x [N, C], edges [2, E] and their channels [E, C]; gives the same, new."""
        given = (x, edge_index) if edge is None else (x, edge_index, edge)
        return x + dropout(self.convolution(*given), self.dropout, self.training), edge


class GatedGCN(nn.Module):
    """Gated graph convolution that carries channels of the edges along, with residuals.

    Formula, for the edges j -> i, with linear layers A to E::

        ê_ij  = C e_ij + D x_i + E x_j
        x̂_i   = A x_i + Σ_j sigmoid(ê_ij) B x_j / (Σ_j sigmoid(ê_ij) + 1e-6)
        out_i = x_i + drop(relu(BatchNorm(x̂_i)));   e_ij + drop(relu(BatchNorm(ê_ij)))

    Args:
        width: C.
        dropout: in [0, 1).
        carry: whether the channels of the edges go on; False in a last layer.

    Reference: Bresson and Laurent 2017; Dwivedi et al. 2023, eq. 8, as GraphGPS uses it.
    """

    def __init__(self, width: int, dropout: float, *, carry: bool = True) -> None:
        super().__init__()
        self.dropout = dropout
        self.own = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.edge = nn.Linear(width, width)
        self.target = nn.Linear(width, width)
        self.source = nn.Linear(width, width)
        self.node_norm = BatchNorm(width)
        self.edge_norm = BatchNorm(width) if carry else None

    def forward(
        self, x: Tensor, edge_index: Tensor, edge: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """From x [N, C], edges [2, E] and their channels [E, C]; gives both, new, or x alone."""
        assert edge is not None
        source, target = edge_index
        gate = self.edge(edge) + self.target(x).index_select(0, target)
        gate = gate + self.source(x).index_select(0, source)
        open_ = gate.sigmoid()
        message = torch.cat((open_ * self.value(x).index_select(0, source), open_), dim=1)
        gathered, total = scatter(message, target, 0, x.size(0)).chunk(2, dim=1)
        new = self.node_norm(self.own(x) + gathered / (total + 1e-6))
        new = x + dropout(functional.relu(new), self.dropout, self.training)
        if self.edge_norm is None:
            return new, None
        # torch's BatchNorm refuses to train on no rows
        gate = self.edge_norm(gate) if gate.size(0) else gate
        return new, edge + dropout(functional.relu(gate), self.dropout, self.training)


class GraphConvolution(nn.Module):
    """OGB's graph convolution with channels of the edges.

    Formula, with h = W x + b and d_i = 1 + degree of i::

        out_i = Σ_j relu(h_j + e_ij) / sqrt(d_i d_j) + relu(h_i + root) / d_i

    Args:
        width: C.

    Reference: Kipf and Welling 2017; Hu et al. 2020 (OGB), whose variant GraphTrans takes.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.root = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor) -> Tensor:
        """From x [N, C], edges [2, E] and what their messages add [E, C]; gives [N, C]."""
        source, target = edge_index
        h = self.linear(x)
        degree = 1 + torch.bincount(source, minlength=x.size(0)).to(x.dtype)
        inverse = degree.rsqrt()[:, None]
        message = functional.relu(h.index_select(0, source) + edge)
        message = message * inverse.index_select(0, source)
        gathered: Tensor = scatter(message, target, 0, x.size(0))
        return gathered * inverse + functional.relu(h + self.root) / degree[:, None]


LOCAL = ("gated_gcn", "gin", "gine")
"""The message-passing layers that GraphGPS can have."""
