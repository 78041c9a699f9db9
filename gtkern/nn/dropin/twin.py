"""Twin: how a layer becomes one and back; with_graph: one graph for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from gtkern.graph import Graph

if TYPE_CHECKING:
    from gtkern.nn.dropin.graphs import GraphCache

__all__ = ["Twin", "with_graph"]


class Twin(nn.Module):
    """The first base of a layer's twin; the second is the layer itself.

    A twin has its layer's parameters, attributes and constructor, and another forward. So a layer
    becomes its twin, and back, by a change of its class: nothing is copied, and whoever holds the
    layer, its parameters or its hooks holds them still.

    Attributes:
        gain: how many times as fast, and where that was measured (`python -m bench.dropin`); or
            what it depends on.
        owns: names of parts that the twin computes itself.
        takes_graph: whether it reads an edge_index.
        listed: whether reports name layers of derived classes.
        drops_padding: whether rows of padding come out otherwise than from the layer.
    """

    if TYPE_CHECKING:
        # the layer's attributes

        def __getattr__(self, name: str) -> Any: ...

    gain: ClassVar[str] = ""
    owns: ClassVar[tuple[str, ...]] = ()
    takes_graph: ClassVar[bool] = False
    drops_padding: ClassVar[bool] = False
    listed: ClassVar[bool] = True

    @classmethod
    def concerns(cls, layer: nn.Module) -> bool:
        """Whether a layer of the class is one of those that the twin is for."""
        return True

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """Why a layer cannot become this twin; None: it can."""
        return None

    @classmethod
    def hand_over(cls, layer: nn.Module) -> str | None:
        """Which calls of a layer the twin gives to the layer's own forward; None: hardly any."""
        return None

    @classmethod
    def take(cls, layer: nn.Module, graphs: GraphCache) -> None:
        """Make a layer a twin."""
        layer.__class__ = cls
        layer.__dict__["_graphs"] = graphs

    def release(self) -> None:
        """Make the twin the layer that it was."""
        self.__dict__.pop("_graphs", None)
        self.__class__ = original(type(self))

    @property
    def graphs(self) -> GraphCache:
        """The graphs seen, shared by the twins that one call of `accelerate` made."""
        cache: GraphCache | None = self.__dict__.get("_graphs")
        if cache is None:
            # its import loads torch's compiler
            from gtkern.nn.dropin.graphs import GraphCache

            cache = self.__dict__["_graphs"] = GraphCache()
        return cache


def original(twin: type) -> Any:
    """The class whose twin this is."""
    return twin.__bases__[-1]


@contextlib.contextmanager
def with_graph(model: nn.Module, graph: Graph) -> Iterator[nn.Module]:
    """Let every twin of a model use one graph, whatever edge_index it is given.

    Twins group an edge_index by themselves and keep the result as long as they meet the same
    tensor. This is for edges that come as a new tensor each time, and for compiled models, where
    it leaves nothing to look up::

        with gtkern.nn.with_graph(model, graph):
            out = model(x, edge_index)

    Args:
        model: with twins among its layers.
        graph: of the very edges, in the order of edge_index, that the model is called with. Other
            numbers of nodes or edges are an error; other edges of the same numbers are not seen.

    Raises:
        TypeError: graph is no gtkern.Graph.
        ValueError: the model has no twins that take a graph.
    """
    if not isinstance(graph, Graph):
        raise TypeError(
            f"graph must be a gtkern.Graph (Graph.from_any makes one), got {type(graph).__name__}"
        )
    twins = [layer for layer in model.modules() if isinstance(layer, Twin)]
    caches = {id(twin.graphs): twin.graphs for twin in twins if twin.takes_graph}
    if not caches:
        raise ValueError(
            "model must have twins that take a graph, got none: gtkern.accelerate(model) makes them"
        )
    before = [(cache, cache.pinned) for cache in caches.values()]
    try:
        for cache in caches.values():
            cache.pinned = graph
        yield model
    finally:
        for cache, pinned in before:
            cache.pinned = pinned
