"""Tokens chosen in every graph of a batch, moved, and their edges; README.md has the derivation."""

from gtkern.ops.token_dropping.op import select_tokens
from gtkern.ops.token_dropping.pairs import drop_tokens, gather_pairs
from gtkern.ops.token_dropping.rows import gather_tokens, scatter_tokens
from gtkern.ops.token_dropping.selection import Selection

__all__ = [
    "Selection",
    "drop_tokens",
    "gather_pairs",
    "gather_tokens",
    "scatter_tokens",
    "select_tokens",
]
