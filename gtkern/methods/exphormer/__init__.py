"""Exphormer: Shirzad et al. 2023, "Exphormer: Sparse Transformers for Graphs" (ICML 2023).

Attention over the graph's edges, an expander and self loops, maybe with virtual nodes; with a graph
convolution beside it in every block it is a GraphGPS of local and global layers. The baseline of
Spexphormer.
"""
