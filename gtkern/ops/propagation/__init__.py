"""The fixed point of personalised propagation on a graph; README.md holds the derivation."""

from gtkern.ops.propagation.call import ConvergenceError, Report
from gtkern.ops.propagation.op import propagate

__all__ = ["ConvergenceError", "Report", "propagate"]
