"""Kept tokens, drawn on molecules or graphs."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["draw"]

_SHOWN, _COLUMNS = 8, 4
_SIZE = 300


def draw(
    path: pathlib.Path, batch: Any, counts: Tensor, layers: int, *, smiles: Sequence[str] = ()
) -> None:
    """Draw a few graphs; the more layers keep a node, the darker it is.

    Args:
        path: the PNG to write.
        batch: the graphs, as PyG batches them.
        counts: int64 [N]; in how many layers each node is kept. layers: of how many.
        smiles: of the molecules, whose atoms are the nodes in order; none: plain graphs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = min(_SHOWN, batch.ptr.numel() - 1)
    rows = -(-shown // _COLUMNS)
    figure = Figure(figsize=(2.9 * _COLUMNS, 2.9 * rows + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for graph in range(shown):
        axes = figure.add_subplot(rows, _COLUMNS, graph + 1)
        begin, end = batch.ptr[graph : graph + 2].tolist()
        share = counts[begin:end].double().cpu().numpy() / layers
        if smiles:
            axes.imshow(_molecule(smiles[graph], share))
        else:
            _graph(axes, batch.edge_index, begin, end, share)
        axes.set_title(f"{int((share > 0).sum())} of {end - begin} nodes", fontsize=9)
        axes.set_axis_off()
    figure.suptitle(f"kept tokens: the darker, the more of {layers} layers keep it", fontsize=10)
    figure.savefig(path)


def _colour(share: float) -> tuple[float, float, float]:
    """From white to blue."""
    return tuple(1 - share * (1 - end) for end in (0.23, 0.44, 0.71))  # type: ignore[return-value]


def _molecule(smiles: str, share: np.ndarray) -> np.ndarray:
    from matplotlib.image import imread
    from rdkit import Chem, rdBase
    from rdkit.Chem.Draw import rdMolDraw2D

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    kept = [int(atom) for atom in share.nonzero()[0]]
    drawer = rdMolDraw2D.MolDraw2DCairo(_SIZE, _SIZE)
    rdMolDraw2D.PrepareAndDrawMolecule(
        drawer,
        molecule,
        highlightAtoms=kept,
        highlightAtomColors={atom: _colour(float(share[atom])) for atom in kept},
        highlightBonds=[],
    )
    drawer.FinishDrawing()
    image: np.ndarray = imread(io.BytesIO(drawer.GetDrawingText()), format="png")
    return image


def _graph(axes: Any, edge_index: Tensor, begin: int, end: int, share: np.ndarray) -> None:
    import networkx

    source, target = edge_index.cpu().numpy()
    inside = (source >= begin) & (source < end)
    graph = networkx.Graph()
    graph.add_nodes_from(range(end - begin))
    graph.add_edges_from(zip(source[inside] - begin, target[inside] - begin, strict=True))
    place = networkx.kamada_kawai_layout(graph) if end - begin < 100 else None
    networkx.draw_networkx(
        graph,
        place or networkx.spring_layout(graph, seed=0),
        ax=axes,
        with_labels=False,
        node_size=55,
        node_color=[_colour(float(value)) for value in share],
        edgecolors="black",
        linewidths=0.6,
        edge_color="#9aa0a6",
    )
