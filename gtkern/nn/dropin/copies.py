"""CopiedTwin: twins of layers that are published as code to copy, not as a library."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gtkern.nn.dropin.graphs import GraphCache
from gtkern.nn.dropin.twin import Twin

__all__ = ["CopiedTwin"]


class CopiedTwin(Twin):
    """A twin of layers whose class lies in the users' own code, under a known name.

    Copies are changed by those who copy. So a layer is known by the name of its class and by its
    parts, and then tried: layer and twin get the same small input, and the layer is left alone
    unless both give the same.

    Attributes:
        agreement: how far results may be apart, over the size of the largest.
        of_any_size: attributes with which the twin computes the smallest calls too.
    """

    agreement: ClassVar[float] = 1e-4
    of_any_size: ClassVar[dict[str, Any]] = {"fewest": 0}

    @classmethod
    def attempt(cls, layer: nn.Module) -> Tensor:
        """What a layer, or its twin, gives for a small drawn input; the same for both."""
        raise NotImplementedError

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin; whether the twin gives what the layer gives."""
        kind = type(layer)
        # without dropout; a part may be in another mode than the layer
        modes = [(part, part.training) for part in layer.modules()]
        for part, _ in modes:
            part.training = False
        try:
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)
                expected = cls.attempt(layer)
                cls.take(layer, GraphCache())
                layer.__dict__.update(cls.of_any_size)
                torch.manual_seed(0)
                found = cls.attempt(layer)
        except Exception as error:  # whatever the copied code may raise
            return f"a call to compare it with its twin failed: {type(error).__name__}: {error}"
        finally:
            layer.__class__ = kind
            for name in ("_graphs", *cls.of_any_size):
                layer.__dict__.pop(name, None)
            for part, training in modes:
                part.training = training
        if found.shape != expected.shape:
            return "it computes something else than the published layer of this name"
        apart = (found.double() - expected.double()).abs().max() / expected.abs().max()
        if not bool(apart <= cls.agreement):
            return "it computes something else than the published layer of this name"
        return None

    @classmethod
    def take(cls, layer: nn.Module, graphs: GraphCache) -> None:
        """See Twin."""
        layer.__class__ = _joined(cls, type(layer))
        layer.__dict__["_graphs"] = graphs

    def __reduce_ex__(self, protocol: Any) -> Any:
        """By the layer's own class: that of the twin is in no module."""
        twin, layer = type(self).__bases__
        return _empty, (twin, layer), self.__dict__


_JOINED: dict[tuple[type, type], type[nn.Module]] = {}


def _joined(twin: type[CopiedTwin], layer: type[nn.Module]) -> type[nn.Module]:
    """One class for each pair, however often it is asked for."""
    return _JOINED.setdefault((twin, layer), type(layer.__name__, (twin, layer), {}))


def _empty(twin: type[CopiedTwin], layer: type[nn.Module]) -> nn.Module:
    """A module whose state is still to be set."""
    kind = _joined(twin, layer)
    module: nn.Module = kind.__new__(kind)
    return module
