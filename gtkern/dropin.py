"""accelerate: one call replaces the layers of a model by twins that compute the same, faster."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from torch import nn

from gtkern.nn.dropin.twin import Twin, original

__all__ = ["Change", "Report", "accelerate", "restore"]

_TWINS = {
    "torch_geometric.nn.conv.transformer_conv.TransformerConv": "transformer_conv",
    "torch_geometric.nn.conv.gat_conv.GATConv": "gat_conv",
    "torch_geometric.nn.conv.gatv2_conv.GATv2Conv": "gatv2_conv",
    "torch_geometric.nn.conv.appnp.APPNP": "appnp",
    "torch_geometric.nn.conv.gps_conv.GPSConv": "gps_conv",
    "torch_geometric.nn.pool.topk_pool.TopKPooling": "topk_pooling",
    "torch.nn.modules.activation.MultiheadAttention": "multihead_attention",
    "torch.nn.modules.linear.Linear": "pruned_linear",
    "torch.nn.modules.transformer.TransformerEncoderLayer": "encoder_layer",
}
"""Layers by their full names, so that none of their libraries need be loaded; and the modules of
gtkern.nn.dropin, each of which holds one twin."""

_COPIES = {
    "ExphormerAttention": "exphormer_attention",
    "GraphormerMultiheadAttention": "graphormer_attention",
    "MultiheadAttention": "graphormer_attention",
}
"""Layers that are published as code to copy, by the names of their classes in any module."""


@dataclass(frozen=True)
class Change:
    """What became of a layer.

    Attributes:
        name: in the model, as in named_modules(); "" is the model itself.
        layer: its class.
        note: replaced: what it gains, and which calls keep the old way; left alone: why.
    """

    name: str
    layer: str
    note: str

    def __str__(self) -> str:
        return f"{self.name or '(the model)'}: {self.layer}" + (self.note and f": {self.note}")


@dataclass(frozen=True)
class Report:
    """What `accelerate` did.

    Attributes:
        replaced: layers that are twins now.
        left: layers that might have been, and why they are not.
    """

    replaced: tuple[Change, ...]
    left: tuple[Change, ...]

    def __str__(self) -> str:
        lines = []
        for title, changes in (("replaced", self.replaced), ("left alone", self.left)):
            lines.append(f"{title}: {len(changes)}")
            lines += [f"  {change}" for change in changes]
        return "\n".join(lines)


def accelerate(model: nn.Module, *, ignore_padding: bool = False) -> Report:
    """Replace the layers of a model that have a faster twin, in place.

    A twin keeps parameters, buffers, hooks, names and state dict, and gives the same results; a
    call that it cannot compute, or not faster, goes to the layer's own forward. Nothing outside the
    model is changed. Layers of a class derived from a known one are left alone: they may compute
    something else.

    Args:
        model: any module; a layer itself too.
        ignore_padding: also replace torch.nn.MultiheadAttention and TransformerEncoderLayer by
            twins that leave out what key_padding_mask marks. Its rows then come out as 0, so
            nothing may read them: no mean over all rows, say.

    Returns:
        What was replaced, and what was not and why. `print` shows it.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    # its import loads torch's compiler
    from gtkern.nn.dropin.graphs import GraphCache

    graphs = GraphCache()
    replaced, left = [], []
    owned: set[int] = set()
    for name, layer in list(model.named_modules()):
        if id(layer) in owned:
            continue
        kind = type(layer)
        known = _twin_for(layer)
        if isinstance(layer, Twin):
            twin: type[Twin] = type(layer)
            left.append(Change(name, kind.__name__, "a twin already"))
        elif known is not None:
            twin = known
            if not twin.concerns(layer):
                continue
            reason = twin.refusal(layer)
            if twin.drops_padding and not (reason or ignore_padding):
                reason = (
                    "its twin gives 0 in rows of padding; where nothing reads them, accelerate "
                    "with ignore_padding=True"
                )
            if reason:
                left.append(Change(name, kind.__name__, reason))
                if twin.drops_padding:
                    owned |= _parts(layer, twin)
                continue
            slow = twin.hand_over(layer)
            note = twin.gain + (f"; the old way in {slow}" if slow else "")
            twin.take(layer, graphs)
            replaced.append(Change(name, kind.__name__, note))
        else:
            reason = _reason(kind)
            if reason:
                left.append(Change(name, kind.__name__, reason))
            continue
        owned |= _parts(layer, twin)
    return Report(tuple(replaced), tuple(left))


def restore(model: nn.Module) -> int:
    """Make the twins of a model the layers that they were, in place; returns how many.

    A twin that was made by its own constructor becomes the layer whose twin it is.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    twins = [layer for layer in model.modules() if isinstance(layer, Twin)]
    for twin in twins:
        twin.release()
    return len(twins)


def _parts(layer: nn.Module, twin: type[Twin]) -> set[int]:
    """What of a layer is not looked at by itself."""
    return {id(part) for at in twin.owns for part in layer.get_submodule(at).modules()}


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _twin_for(layer: nn.Module) -> type[Twin] | None:
    """The twin of layers of this class, or of this name in code that users copy."""
    kind = type(layer)
    if _full_name(kind) in _TWINS:
        return _load(_full_name(kind))
    if kind.__name__ in _COPIES and not kind.__module__.startswith(("torch.", "gtkern.")):
        return _public(_COPIES[kind.__name__])
    return None


def _load(name: str) -> type[Twin]:
    twin = _public(_TWINS[name])
    assert _full_name(original(twin)) == name
    return twin


def _public(module_name: str) -> type[Twin]:
    module = importlib.import_module(f"gtkern.nn.dropin.{module_name}")
    (public,) = module.__all__
    twin: type[Twin] = getattr(module, public)
    return twin


def _reason(kind: type) -> str | None:
    """Why a layer that is no known one, but near one, is left alone."""
    for base in kind.__mro__[1:]:
        if _full_name(base) in _TWINS and _load(_full_name(base)).listed:
            return f"derived from {base.__name__}, and may compute something else"
    return None
