"""Data sets: generated ones, and readers of published files in the layout PyG and OGB use."""

from gtkern.data.minesweeper import minesweeper
from gtkern.data.node import NodeData, check_node_data, random_split
from gtkern.data.power_law import power_law
from gtkern.data.published import PUBLISHED, DataNotFoundError, load_published

__all__ = [
    "PUBLISHED",
    "DataNotFoundError",
    "NodeData",
    "check_node_data",
    "load_published",
    "minesweeper",
    "power_law",
    "random_split",
]
