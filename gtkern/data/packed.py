"""A whole set of graphs in flat tensors, and batches cut from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gtkern import _check
from gtkern.data import _files
from gtkern.data._segments import Segments
from gtkern.data.order import BatchOrder

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["PackedGraphs"]

_KIND = "gtkern.PackedGraphs/1"
_OWN = ("x", "edge_index", "edge_attr", "y")
_RESERVED = frozenset((*_OWN, "ptr", "batch", "num_graphs", "num_nodes", "num_edges"))


class PackedGraphs:
    """Many graphs in flat tensors, numbered through as in one large batch; all on the CPU.

    Args:
        x: [N, F] features of nodes: floating point, or int64 categories.
        edge_index: int64 [2, E], sources in row 0; grouped by graph.
        node_ptr: int64 [G + 1]; the nodes of graph g are node_ptr[g] .. node_ptr[g + 1].
        edge_ptr: int64 [G + 1]; its edges.
        y: [G] or [G, tasks]; NaN is a missing label. Default: no labels, [G, 0].
        edge_attr: [E, Fe], as x; None without features of edges.
        node_categories: how many categories each column of integer x has; default: the largest
            value + 1. Empty for floating point x.
        edge_categories: the same for edge_attr.

    Raises:
        TypeError: not a tensor, or of a wrong dtype. ValueError: sizes do not fit; an edge leaves
            its graph, or a category is out of range; names the graph.
    """

    def __init__(
        self,
        x: Tensor,
        edge_index: Tensor,
        node_ptr: Tensor,
        edge_ptr: Tensor,
        *,
        y: Tensor | None = None,
        edge_attr: Tensor | None = None,
        node_categories: Sequence[int] | None = None,
        edge_categories: Sequence[int] | None = None,
    ) -> None:
        for name, value in (("x", x), ("edge_index", edge_index)):
            _check.tensor(name, value)
            if value.dim() != 2:
                axes = "N, F" if name == "x" else "2, E"
                raise ValueError(f"{name} must have shape [{axes}], got {list(value.shape)}")
        self._arrays: dict[str, tuple[Tensor, Tensor]] = {}
        self.node_ptr = _pointer("node_ptr", node_ptr, x.size(0))
        self.edge_ptr = _pointer("edge_ptr", edge_ptr, edge_index.size(1))
        graphs = self.node_ptr.numel() - 1
        _check.shape("edge_ptr", self.edge_ptr, "G + 1", [graphs + 1])
        _check.shape("edge_index", edge_index, "2, E", [2, edge_index.size(1)])
        if edge_index.dtype != torch.int64:
            raise TypeError(f"edge_index must be int64, got {edge_index.dtype}")
        self.x, self.edge_index = x.contiguous(), edge_index.contiguous()
        self._check_edges()

        y = torch.empty(graphs, 0) if y is None else y
        _check.tensor("y", y)
        if y.dim() not in (1, 2) or y.size(0) != graphs:
            raise ValueError(
                f"y must have shape [G] or [G, tasks] with G = {graphs}, got {list(y.shape)}"
            )
        self.y = y.contiguous()

        self.edge_attr: Tensor | None = None
        if edge_attr is not None:
            _check.tensor("edge_attr", edge_attr)
            if edge_attr.dim() != 2 or edge_attr.size(0) != edge_index.size(1):
                raise ValueError(
                    f"edge_attr must have shape [E, Fe] with E = {edge_index.size(1)}, "
                    f"got {list(edge_attr.shape)}"
                )
            self.edge_attr = edge_attr.contiguous()
        self.node_categories = _categories("x", self.x, self.node_ptr, node_categories)
        self.edge_categories = (
            ()
            if self.edge_attr is None
            else _categories("edge_attr", self.edge_attr, self.edge_ptr, edge_categories)
        )

    @classmethod
    def from_data_list(
        cls,
        graphs: Sequence[Data],
        *,
        node_categories: Sequence[int] | None = None,
        edge_categories: Sequence[int] | None = None,
    ) -> PackedGraphs:
        """Pack PyG graphs with x, edge_index and, if all have them, edge_attr and y.

        Args:
            graphs: x [n, F]; edge_index int64 [2, e]; edge_attr [e, Fe]; y one value for each task.
            node_categories, edge_categories: as for the class.

        Raises:
            TypeError, ValueError: names the graph and what is wrong with it.
        """
        from gtkern.data import _lists

        tensors = _lists.pack(graphs)
        return cls(**tensors, node_categories=node_categories, edge_categories=edge_categories)

    def __len__(self) -> int:
        """G."""
        return self.node_ptr.numel() - 1

    def __repr__(self) -> str:
        arrays = "".join(f", {name}" for name in self._arrays)
        return (
            f"PackedGraphs({len(self):,} graphs, {self.x.size(0):,} nodes, "
            f"{self.edge_index.size(1):,} edges{arrays})"
        )

    @property
    def num_features(self) -> int:
        """F, the columns of x."""
        return self.x.size(1)

    @property
    def num_edge_features(self) -> int:
        """Fe, the columns of edge_attr; 0 without."""
        return 0 if self.edge_attr is None else self.edge_attr.size(1)

    @property
    def num_tasks(self) -> int:
        """Labels of a graph."""
        return 1 if self.y.dim() == 1 else self.y.size(1)

    @property
    def num_nodes(self) -> Tensor:
        """int64 [G]: nodes of each graph."""
        return self.node_ptr.diff()

    @property
    def arrays(self) -> Mapping[str, Tensor]:
        """What was added, by name."""
        return MappingProxyType({name: values for name, (values, _) in self._arrays.items()})

    def pair_ptr(self, tokens: int = 0) -> Tensor:
        """int64 [G + 1], cumulative (n_g + tokens)²: the pointer of arrays over pairs of nodes.

        Args:
            tokens: extra tokens a model gives each graph.
        """
        pairs = (self.num_nodes + tokens) ** 2
        return torch.nn.functional.pad(pairs.cumsum(0), (1, 0))

    def add(self, name: str, values: Tensor, ptr: Tensor) -> None:
        """Give the graphs one more array, which batches then carry under its name.

        Args:
            name: an attribute of the batches; an array of this name is replaced.
            values: [rows, ...], on the CPU.
            ptr: int64 [G + 1]; the rows of graph g are ptr[g] .. ptr[g + 1]. `node_ptr`, `edge_ptr`
                and `pair_ptr()` are such pointers.
        """
        if not name.isidentifier() or name in _RESERVED or name.startswith("_"):
            raise ValueError(f"name must be a new attribute's name, got {name!r}")
        _check.tensor("values", values)
        if values.dim() == 0 or values.device.type != "cpu":
            raise ValueError(
                f"values must have shape [rows, ...] on cpu, got {list(values.shape)} "
                f"on {values.device}"
            )
        ptr = _pointer("ptr", ptr, values.size(0))
        _check.shape("ptr", ptr, "G + 1", [len(self) + 1])
        for known in (self.node_ptr, self.edge_ptr, *(ptr for _, ptr in self._arrays.values())):
            if torch.equal(ptr, known):
                ptr = known
                break
        self._arrays[name] = (values.detach().contiguous(), ptr)

    def batch(self, indices: Sequence[int] | Tensor) -> Data:
        """Cut a batch.

        Args:
            indices: int64 [B], numbers of graphs, in any order, repeated or not.

        Returns:
            A PyG Data with x, edge_index (numbered through the batch), edge_attr (None without), y,
            ptr int64 [B + 1], batch int64 [nodes], num_graphs, and every added array.
        """
        from torch_geometric.data import Data

        chosen = self._numbers(indices)
        nodes = Segments(self.node_ptr, chosen)
        edges = Segments(self.edge_ptr, chosen)
        ptr = torch.nn.functional.pad(nodes.counts.cumsum(0), (1, 0))
        shift = edges.spread(ptr[:-1] - nodes.begins)
        batch = Data(
            x=nodes.take(self.x),
            edge_index=torch.stack([edges.take(ends) for ends in self.edge_index]).add_(shift),
            edge_attr=None if self.edge_attr is None else edges.take(self.edge_attr),
            y=self.y.index_select(0, chosen),
            ptr=ptr,
            batch=nodes.spread(torch.arange(chosen.numel())),
            num_graphs=chosen.numel(),
        )
        known = {id(self.node_ptr): nodes, id(self.edge_ptr): edges}
        for name, (values, own) in self._arrays.items():
            rows = known.get(id(own))
            if rows is None:
                rows = known[id(own)] = Segments(own, chosen)
            batch[name] = rows.take(values)
        return batch

    def __getitem__(self, number: int) -> Data:
        """One graph, for PyG's own DataLoader: its batches have the same attributes as `batch`."""
        from gtkern.data._pyg import GraphData

        if not 0 <= number < len(self):
            raise IndexError(f"number must be 0 .. {len(self) - 1}, got {number}")

        def rows(values: Tensor, ptr: Tensor) -> Tensor:
            return values[int(ptr[number]) : int(ptr[number + 1])]

        return GraphData(
            x=rows(self.x, self.node_ptr),
            edge_index=rows(self.edge_index.t(), self.edge_ptr).t() - self.node_ptr[number],
            edge_attr=None if self.edge_attr is None else rows(self.edge_attr, self.edge_ptr),
            y=self.y[number : number + 1],
            **{name: rows(values, ptr) for name, (values, ptr) in self._arrays.items()},
        )

    def loader(
        self,
        indices: Sequence[int] | Tensor | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> DataLoader[Any]:
        """A DataLoader over batches of some graphs.

        Args:
            indices: numbers of the graphs; default: all.
            batch_size: graphs in a batch, at least 1; the last may have fewer.
            shuffle: draw a new order in each epoch, from the seed and the epoch alone; else the
                order of `indices`. The loader's `sampler` is a BatchOrder.
            seed: 64-bit integer.
            drop_last: leave out a last batch that is not full.
        """
        chosen = torch.arange(len(self)) if indices is None else self._numbers(indices)
        order = BatchOrder(chosen, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
        return DataLoader(_Batches(self), batch_size=None, sampler=order, collate_fn=_same)

    def save(self, path: str | os.PathLike[str], made_by: Mapping[str, Any] | None = None) -> None:
        """Write everything to one safetensors file, whole or not at all.

        Args:
            path: the file; its folder is made.
            made_by: what decides the content (settings, hashes of raw files), of JSON's types;
                `load` asks for the same.
        """
        tensors, facts = self.to_tensors()
        _files.write(path, tensors, {**facts, "made_by": made_by})

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], made_by: Mapping[str, Any] | None = None
    ) -> PackedGraphs | None:
        """Read what `save` wrote; None when there is no whole file, or one made by anything else.

        Args:
            path: the file.
            made_by: as given to `save`.
        """
        found = _files.read(path)
        if found is None or found[1].get("kind") != _KIND:
            return None
        tensors, facts = found
        if facts["made_by"] != _files.as_json(made_by):
            return None
        return cls.from_tensors(tensors, facts)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, and what else `from_tensors` needs, of JSON's types."""
        pointers: list[Tensor] = [self.node_ptr, self.edge_ptr]
        tensors = {"x": self.x, "edge_index": self.edge_index, "y": self.y}
        if self.edge_attr is not None:
            tensors["edge_attr"] = self.edge_attr
        arrays = {}
        for name, (values, ptr) in self._arrays.items():
            if not any(ptr is known for known in pointers):
                pointers.append(ptr)
            tensors[f"array.{name}"] = values
            arrays[name] = next(i for i, known in enumerate(pointers) if known is ptr)
        tensors.update({f"ptr.{number}": ptr for number, ptr in enumerate(pointers)})
        facts = {
            "kind": _KIND,
            "node_categories": list(self.node_categories),
            "edge_categories": list(self.edge_categories),
            "arrays": arrays,
        }
        return tensors, facts

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> PackedGraphs:
        """The inverse of `to_tensors`."""
        packed = cls(
            tensors["x"],
            tensors["edge_index"],
            tensors["ptr.0"],
            tensors["ptr.1"],
            y=tensors["y"],
            edge_attr=tensors.get("edge_attr"),
            node_categories=facts["node_categories"] or None,
            edge_categories=facts["edge_categories"] or None,
        )
        for name, number in facts["arrays"].items():
            packed.add(name, tensors[f"array.{name}"], tensors[f"ptr.{number}"])
        return packed

    def _numbers(self, indices: Sequence[int] | Tensor) -> Tensor:
        chosen = torch.as_tensor(indices)
        if chosen.numel() == 0:
            return torch.empty(0, dtype=torch.int64)
        if chosen.dtype not in (torch.int64, torch.int32) or chosen.dim() != 1:
            raise TypeError(
                f"indices must be integers [B], got {chosen.dtype} {list(chosen.shape)}"
            )
        low, high = torch.aminmax(chosen)
        if low < 0 or high >= len(self):
            wrong = int(low if low < 0 else high)
            raise ValueError(f"indices must be 0 .. {len(self) - 1} (graphs - 1), got {wrong}")
        return chosen.to(torch.int64)

    def _check_edges(self) -> None:
        """Raise ValueError unless every edge lies in its graph."""
        counts = self.edge_ptr.diff()
        begin, end = (
            torch.repeat_interleave(bound, counts)
            for bound in (self.node_ptr[:-1], self.node_ptr[1:])
        )
        outside = ((self.edge_index < begin) | (self.edge_index >= end)).any(0)
        if bool(outside.any()):
            edge = int(outside.nonzero()[0])
            graph = _graph_of(self.edge_ptr, edge)
            source, destination = self.edge_index[:, edge].tolist()
            raise ValueError(
                f"edge_index must stay inside each graph: graph {graph} has the nodes "
                f"{int(begin[edge])} .. {int(end[edge]) - 1}, "
                f"got the edge {source} -> {destination} (edge {edge})"
            )


class _Batches(Dataset[Any]):
    """What the loader reads: an item is a batch."""

    def __init__(self, graphs: PackedGraphs) -> None:
        self.graphs = graphs

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, chosen: Tensor) -> Data:
        return self.graphs.batch(chosen)


def _same(batch: Any) -> Any:
    return batch


def _graph_of(ptr: Tensor, row: int) -> int:
    return int(torch.searchsorted(ptr, row, right=True)) - 1


def _pointer(name: str, ptr: Tensor, rows: int) -> Tensor:
    _check.tensor(name, ptr)
    if ptr.dtype not in (torch.int64, torch.int32) or ptr.device.type != "cpu":
        raise TypeError(f"{name} must be int64 on cpu, got {ptr.dtype} on {ptr.device}")
    if ptr.dim() != 1 or ptr.numel() == 0:
        raise ValueError(f"{name} must have shape [G + 1], got {list(ptr.shape)}")
    if int(ptr[0]) != 0 or int(ptr[-1]) != rows or bool(_check.falls(ptr).any()):
        raise ValueError(
            f"{name} must rise from 0 to {rows} (rows), got {int(ptr[0])} .. {int(ptr[-1])}"
        )
    return ptr.to(torch.int64).contiguous()


def _categories(
    name: str, values: Tensor, ptr: Tensor, categories: Sequence[int] | None
) -> tuple[int, ...]:
    """Check features; returns the number of categories of each column, nothing for floats."""
    rows, columns = values.shape
    if values.is_floating_point():
        if categories:
            raise TypeError(f"{name} must be int64 to have categories, got {values.dtype}")
        wrong = (~torch.isfinite(values)).any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            graph = _graph_of(ptr, row)
            raise ValueError(f"{name} must be finite, got NaN or infinity in graph {graph}")
        return ()
    if values.dtype != torch.int64:
        raise TypeError(f"{name} must be floating point or int64, got {values.dtype}")
    highest = values.amax(0).tolist() if rows > 0 else [0] * columns
    sizes = tuple(highest[c] + 1 for c in range(columns)) if categories is None else categories
    if len(sizes) != columns:
        raise ValueError(f"categories of {name} must be {columns} numbers, got {len(sizes)}")
    wrong = (values < 0) | (values >= torch.tensor(sizes, dtype=torch.int64))
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        graph = _graph_of(ptr, row)
        raise ValueError(
            f"{name}[:, {column}] must be 0 .. {sizes[column] - 1}, "
            f"got {int(values[row, column])} in graph {graph}"
        )
    return tuple(int(size) for size in sizes)
