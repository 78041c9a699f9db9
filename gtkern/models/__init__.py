"""Whole networks, made of gtkern.nn."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gtkern.models.exphormer import Exphormer, SampledExphormer, ScoreEstimator, augment

if TYPE_CHECKING:
    from gtkern.models.graphgps import GraphGPS, GraphGPSSettings
    from gtkern.models.graphormer import Graphormer, GraphormerSettings
    from gtkern.models.graphormer_checkpoint import load_checkpoint
    from gtkern.models.graphtrans import GraphTrans, GraphTransSettings
    from gtkern.models.light import LiGhT, LiGhTSettings
    from gtkern.models.light_checkpoint import load_light_checkpoint
    from gtkern.models.saved import load_model, save_model

__all__ = [
    "Exphormer",
    "GraphGPS",
    "GraphGPSSettings",
    "GraphTrans",
    "GraphTransSettings",
    "Graphormer",
    "GraphormerSettings",
    "LiGhT",
    "LiGhTSettings",
    "SampledExphormer",
    "ScoreEstimator",
    "augment",
    "load_checkpoint",
    "load_light_checkpoint",
    "load_model",
    "save_model",
]

_LATER = {
    "GraphGPS": "graphgps",
    "GraphGPSSettings": "graphgps",
    "GraphTrans": "graphtrans",
    "GraphTransSettings": "graphtrans",
    "Graphormer": "graphormer",
    "GraphormerSettings": "graphormer",
    "LiGhT": "light",
    "load_checkpoint": "graphormer_checkpoint",
    "LiGhTSettings": "light",
    "load_light_checkpoint": "light_checkpoint",
    "load_model": "saved",
    "save_model": "saved",
}
"""Where names are that are loaded on first use: PyG takes longer to load than all else here."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"gtkern.models.{_LATER[name]}"), name)
