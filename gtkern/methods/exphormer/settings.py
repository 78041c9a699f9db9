"""The settings of Exphormer; light to import, for mistakes in them should show at once."""

from __future__ import annotations

from dataclasses import dataclass

from gtkern.methods.node_settings import NodeSettings
from gtkern.training.optimization import Optimization
from gtkern.training.settings import setting

__all__ = ["Settings", "Training"]


@dataclass(frozen=True, kw_only=True)
class Training(Optimization):
    """The network and its training.

    Attributes:
        layers, width, heads, norm, dropout, pre_layers, post_layers, virtual_nodes: see Exphormer.
        local: "none", or "gcn" for a graph convolution (PyG's GCNConv) beside attention in every
            block.
        graph_edges: whether attention sees the graph's own edges; False leaves them to the local
            layers, and attention to expander, self loops and virtual nodes.
    """

    layers: int = setting(4, low=1)
    width: int = setting(64, low=1)
    heads: int = setting(2, low=1)
    norm: str = setting("batch", choices=("graph", "batch"))
    dropout: float = setting(0.2, low=0, below=1)
    pre_layers: int = setting(1, low=0)
    post_layers: int = setting(1, low=1)
    virtual_nodes: int = setting(0, low=0, high=1024)
    local: str = setting("none", choices=("none", "gcn"))
    graph_edges: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width // self.heads > 256:
            raise ValueError(
                f"heads must divide width {self.width} into heads of at most 256, got {self.heads}"
            )


@dataclass(frozen=True, kw_only=True)
class Settings(NodeSettings):
    """Everything that decides a run, but for the data and the machine.

    Attributes:
        training: the network and its training. The others: see NodeSettings.
    """

    training: Training
