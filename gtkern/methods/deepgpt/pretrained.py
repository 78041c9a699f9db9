"""Backbones to tune: networks that gtkern saved, and public checkpoints."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from gtkern import ops
from gtkern.data.graphs import GraphDataset
from gtkern.models import load_checkpoint, load_light_checkpoint
from gtkern.models.checkpoints import read_state
from gtkern.models.saved import load_model, read_config
from gtkern.training.graph_settings import MODELS

__all__ = ["PUBLIC", "Backbone", "open_backbone"]

Features: TypeAlias = int | tuple[int, ...] | None

PUBLIC = ("graphormer", "light")
"""The models whose public checkpoints are read."""


@dataclass(frozen=True)
class Backbone:
    """Where a network is, and what it was made for.

    Attributes:
        path: of the folder or file.
        model: its name, one of gtkern.training.graph_settings.MODELS.
        settings: of the network.
        node_features, edge_features: of the data it was made for; None: it reads none.
        make: reads it, with the attention given.
    """

    path: pathlib.Path
    model: str
    settings: Any
    node_features: int | tuple[int, ...]
    edge_features: Features
    make: Callable[[Callable[..., Tensor]], nn.Module]

    def check(self, data: GraphDataset) -> None:
        """See that the network can read these graphs.

        Raises:
            ValueError: it was made for other features; names both.
        """
        graphs = data.graphs
        found: tuple[Features, Features] = (
            graphs.node_categories or graphs.num_features,
            graphs.edge_categories or graphs.num_edge_features or None,
        )
        wanted = (self.node_features, self.edge_features)
        for name, mine, theirs in zip(("nodes", "edges"), wanted, found, strict=True):
            if mine is not None and mine != theirs:
                raise ValueError(
                    f"the backbone {self.path} reads features of {name} that are "
                    f"{_described(mine)}, those of {data.name} are {_described(theirs)}"
                )

    def digest(self) -> str:
        """Of the file with the weights, which tells one backbone from another."""
        file = self.path
        if file.is_dir():
            file = next(
                place / "model.safetensors"
                for place in (self.path / "model", self.path)
                if (place / "model.safetensors").is_file()
            )
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]

    def read(self, attend: Callable[..., Tensor] = ops.ragged_attention) -> nn.Module:
        """The network, in evaluation."""
        return self.make(attend).eval()


def open_backbone(
    path: pathlib.Path, model: str | None = None, network: dict[str, Any] | None = None
) -> Backbone:
    """Find out what a backbone is.

    Args:
        path: a folder that gtkern left (of `gtkern pretrain`, of `gtkern prune`, or its `model`);
            or a file with a public checkpoint: Microsoft's and Hugging Face's Graphormer, or KPGT's
            LiGhT.
        model: of a public checkpoint, one of PUBLIC.
        network: the settings of its network; None: Graphormer-base, KPGT's base.

    Raises:
        FileNotFoundError, ValueError: no backbone is there; says what is.
    """
    if path.is_dir():
        if model is not None or network is not None:
            raise ValueError(f"{path} says itself what its network is: it needs no model or sizes")
        return _saved(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no backbone {path}: it must be a folder or a file")
    if model not in PUBLIC:
        raise ValueError(
            f"{path} is a file: its model must be one of {', '.join(PUBLIC)}, got {model}"
        )
    return _graphormer(path, network) if model == "graphormer" else _light(path, network)


def _saved(path: pathlib.Path) -> Backbone:
    folder = path / "model" if (path / "model").is_dir() else path
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"there is no saved network in {path}: a backbone must be a folder that "
            "gtkern pretrain or gtkern prune left, or its `model`"
        )
    config = read_config(folder)
    model = config["model"].lower()
    settings = MODELS[model][1](**config["settings"])
    edges: Features = _features(config["edge_features"])
    if model == "graphgps" and settings.local == "gin":
        edges = None
    return Backbone(
        path,
        model,
        settings,
        _features(config["node_features"]),
        edges,
        lambda attend: load_model(folder, attend=attend),
    )


def _graphormer(path: pathlib.Path, network: dict[str, Any] | None) -> Backbone:
    from gtkern.data.molecule import feature_sizes

    cls, settings_class = MODELS["graphormer"]
    settings = settings_class.base() if network is None else settings_class(**network)
    atoms, bonds = feature_sizes()

    def make(attend: Callable[..., Tensor]) -> nn.Module:
        made: Any = cls(atoms, 1, settings, edge_features=bonds, attend=attend)
        state = read_state(path)
        # Hugging Face's collator, with which its checkpoints are used, leaves one more row free
        row = 3 if any(key.startswith("classifier.") for key in state) else 2
        _complain(path, load_checkpoint(made, state, first_atom_row=row), "head")
        return made  # type: ignore[no-any-return]

    return Backbone(path, "graphormer", settings, atoms, bonds, make)


def _light(path: pathlib.Path, network: dict[str, Any] | None) -> Backbone:
    from gtkern.models.light_checkpoint import KPGT_EDGE_FEATURES, KPGT_NODE_FEATURES, kpgt_base

    cls, settings_class = MODELS["light"]
    settings = kpgt_base() if network is None else settings_class(**network)
    nodes, edges = KPGT_NODE_FEATURES, KPGT_EDGE_FEATURES

    def make(attend: Callable[..., Tensor]) -> nn.Module:
        made: Any = cls(nodes, 1, settings, edge_features=edges, attend=attend)
        _complain(path, load_light_checkpoint(made, path), "head")
        return made  # type: ignore[no-any-return]

    return Backbone(path, "light", settings, nodes, edges, make)


def _complain(path: pathlib.Path, report: Any, head: str) -> None:
    """Raise ValueError unless all but the head was filled."""
    missing = [name for name in report.missing if not name.startswith(head)]
    if missing:
        raise ValueError(
            f"{path} does not fill the network: {len(missing)} parameters are missing, the first "
            f"is {missing[0]}; --network must be the settings of the checkpoint's"
        )


def _features(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) else value


def _described(features: Features) -> str:
    if features is None:
        return "not there"
    if isinstance(features, int):
        return f"{features} numbers"
    return f"categories of sizes {list(features)}"
