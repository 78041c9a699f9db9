"""What the op hands to its backends; all but the prefix is shared with the rooms of attention."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gtkern.ops._attention import Forward, Gradients, Needs, Options, Terms

__all__ = ["Forward", "Gradients", "Needs", "Options", "Prefix", "Terms"]


class Prefix(NamedTuple):
    """Sources of every row besides its edges: k [P, H, D] and v [P, H, Dv], dtype of q."""

    k: Tensor
    v: Tensor
