"""GTSP: prune tokens, heads, layers and weights of graph transformers while they train.

Reference: Liu et al. 2023, "Exploring Sparsity in Graph Transformers".
"""

from gtkern.methods.gtsp.heads import GatedHeads, HeadPruner
from gtkern.methods.gtsp.pruner import AttentionSite, Pruner, Schedule, attention_sites

__all__ = ["AttentionSite", "GatedHeads", "HeadPruner", "Pruner", "Schedule", "attention_sites"]
