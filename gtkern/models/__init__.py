"""Whole networks, made of gtkern.nn."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gtkern.models.exphormer import Exphormer, SampledExphormer, ScoreEstimator, augment

if TYPE_CHECKING:
    from gtkern.models.graphgps import GraphGPS, GraphGPSSettings

__all__ = [
    "Exphormer",
    "GraphGPS",
    "GraphGPSSettings",
    "SampledExphormer",
    "ScoreEstimator",
    "augment",
]

_LATER = {
    "GraphGPS": "graphgps",
    "GraphGPSSettings": "graphgps",
}
"""Where the names are that load PyG, which takes longer than all else here: on first use."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"gtkern.models.{_LATER[name]}"), name)
