"""What the op hands to its backends; shared with the other rooms of attention."""

from gtkern.ops._attention import Forward, Gradients, Needs, Options, Terms

__all__ = ["Forward", "Gradients", "Needs", "Options", "Terms"]
