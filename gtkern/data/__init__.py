"""Data sets: generated ones, and readers of published files in the layout PyG and OGB use."""

from gtkern.data.graphs import GRAPH_SETS, GraphDataset, load_graphs
from gtkern.data.minesweeper import minesweeper
from gtkern.data.molecule import from_smiles
from gtkern.data.motifs import motifs
from gtkern.data.node import NodeData, check_node_data, random_split
from gtkern.data.packed import PackedGraphs
from gtkern.data.power_law import power_law
from gtkern.data.published import PUBLISHED, DataNotFoundError, load_published
from gtkern.data.smiles_file import read_smiles
from gtkern.data.splits import Split

__all__ = [
    "GRAPH_SETS",
    "PUBLISHED",
    "DataNotFoundError",
    "GraphDataset",
    "NodeData",
    "PackedGraphs",
    "Split",
    "check_node_data",
    "from_smiles",
    "load_graphs",
    "load_published",
    "minesweeper",
    "motifs",
    "power_law",
    "random_split",
    "read_smiles",
]
