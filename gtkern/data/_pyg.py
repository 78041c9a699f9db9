"""What depends on PyG's classes: imported when a graph is made, for PyG takes a second to load."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_geometric.data import Data

__all__ = ["GraphData"]


class GraphData(Data):
    """One graph of a packed set; PyG's batches shift its edges only, whatever arrays are called."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self.num_nodes if key == "edge_index" else 0

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        return 1 if key == "edge_index" else 0
