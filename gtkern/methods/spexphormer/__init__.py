"""Spexphormer: Shirzad et al. 2024, "Even Sparser Graph Transformers" (NeurIPS 2024).

Phase 1 trains a narrow network on a graph with expander edges and keeps its attention scores; phase
2 trains a wide network on a few edges of every node and layer, drawn anew by those scores each
epoch. `settings` has what can be set, `tasks` the two phases, `run` a whole run, `experiments`
those of the paper.
"""
