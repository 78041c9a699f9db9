"""Data sets: generated ones, and readers of published files in the layout PyG and OGB use."""

from gtkern.data._raw import DataNotFoundError, undirected
from gtkern.data.graphs import GRAPH_SETS, GraphDataset, load_graphs
from gtkern.data.minesweeper import minesweeper
from gtkern.data.molecule import from_smiles
from gtkern.data.motifs import motifs
from gtkern.data.node import NodeData, check_node_data, random_split, stratified_split
from gtkern.data.packed import PackedGraphs
from gtkern.data.power_law import power_law
from gtkern.data.published import PUBLISHED, load_published
from gtkern.data.smiles_file import read_smiles
from gtkern.data.splits import Split
from gtkern.data.text import TEXT_SETS, fewer_labels, load_text_graph
from gtkern.data.text_files import read_text_graph
from gtkern.data.text_graph import TextGraph, check_text_graph
from gtkern.data.word_graph import word_graph

__all__ = [
    "GRAPH_SETS",
    "PUBLISHED",
    "TEXT_SETS",
    "DataNotFoundError",
    "GraphDataset",
    "NodeData",
    "PackedGraphs",
    "Split",
    "TextGraph",
    "check_node_data",
    "check_text_graph",
    "fewer_labels",
    "from_smiles",
    "load_graphs",
    "load_published",
    "load_text_graph",
    "minesweeper",
    "motifs",
    "power_law",
    "random_split",
    "read_smiles",
    "read_text_graph",
    "stratified_split",
    "undirected",
    "word_graph",
]
