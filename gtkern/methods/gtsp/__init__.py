"""GTSP: prune tokens, heads, layers and weights of graph transformers while they train.

Reference: Liu et al. 2023, "Exploring Sparsity in Graph Transformers".
"""

from gtkern.methods.gtsp.heads import GatedHeads, HeadPruner
from gtkern.methods.gtsp.layers import DroppableAttention, LayerPruner
from gtkern.methods.gtsp.neurons import NeuronPruner
from gtkern.methods.gtsp.pruner import AttentionSite, Pruner, Schedule, attention_sites
from gtkern.methods.gtsp.tokens import TokenPruner
from gtkern.methods.gtsp.weights import WeightPruner

__all__ = [
    "AttentionSite",
    "DroppableAttention",
    "GatedHeads",
    "HeadPruner",
    "LayerPruner",
    "NeuronPruner",
    "Pruner",
    "Schedule",
    "TokenPruner",
    "WeightPruner",
    "attention_sites",
]
