"""Networks in files: settings, features, what was pruned away, and weights."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gtkern.models
from gtkern import ops
from gtkern.nn import BlockSparseLinear, RaggedMultiheadAttention, TokenDroppingAttention

__all__ = [
    "MODEL_FORMAT",
    "apply_structure",
    "load_model",
    "read_config",
    "save_model",
    "structure_of",
]

MODEL_FORMAT = 1
"""The version of config.json; it grows when a key is renamed or removed."""

_MODELS = ("GraphGPS", "GraphTrans", "Graphormer", "LiGhT")
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def structure_of(model: nn.Module) -> dict[str, Any]:
    """What tells a compact network from the dense one of its settings.

    Returns:
        "heads": the heads that attention still has, by its layer's name, where some are gone;
        "removed": names of the layers without attention; "tokens": the ratio of those whose
        attention drops tokens, and what it always keeps; "linear": [C_out, C_in] of every linear
        layer outside attention, by its name; "blocks": the sizes of those that keep blocks alone.
    """
    heads: dict[str, list[int]] = {}
    removed: list[str] = []
    tokens: dict[str, dict[str, Any]] = {}
    linear: dict[str, list[int]] = {}
    blocks: dict[str, dict[str, Any]] = {}
    inside = set()
    for name, module in model.named_modules():
        if isinstance(module, RaggedMultiheadAttention):
            inside.add(f"{name}.out_proj")
            if module.heads is not None:
                heads[name] = list(module.heads)
        elif "attention" in module._modules and module._modules["attention"] is None:
            removed.append(name)
        elif isinstance(module, TokenDroppingAttention):
            tokens[name] = {
                "ratio": module.ratio,
                "mode": module.mode,
                "temperature": module.temperature,
                "noise": module.noise,
                "always_keep": list(module.always_keep),
            }
        elif isinstance(module, BlockSparseLinear):
            blocks[name] = {
                "shape": list(module.shape),
                "block": list(module.block),
                "kept": module.weight.num_blocks,
                "activation": module.activation,
            }
        elif type(module) is nn.Linear and name not in inside:
            linear[name] = [module.out_features, module.in_features]
    return {
        "heads": heads,
        "removed": removed,
        "tokens": tokens,
        "linear": linear,
        "blocks": blocks,
    }


def apply_structure(model: nn.Module, structure: Mapping[str, Any]) -> None:
    """Take out of a dense network what `structure_of` says; its weights are to be loaded then.

    Raises:
        ValueError: the network has no such part; names it.
    """
    for name in structure["removed"]:
        layer = _part(model, name)
        layer.attention = None
    for name, options in structure["tokens"].items():
        wrapped = TokenDroppingAttention(_part(model, name), **options)
        model.set_submodule(name, wrapped)
    for name, heads in structure["heads"].items():
        attention = _part(model, name)
        if not isinstance(attention, RaggedMultiheadAttention):
            raise ValueError(f"{name} must be attention, got {type(attention).__name__}")
        model.set_submodule(name, attention.keep_heads(heads))
    for name, (outputs, inputs) in structure["linear"].items():
        layer = _part(model, name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{name} must be a linear layer, got {type(layer).__name__}")
        if (layer.out_features, layer.in_features) != (outputs, inputs):
            model.set_submodule(name, nn.Linear(inputs, outputs, layer.bias is not None))

    for name, sizes in structure["blocks"].items():
        layer = _part(model, name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{name} must be a linear layer, got {type(layer).__name__}")
        rows, columns = (
            -(-size // step) for size, step in zip(sizes["shape"], sizes["block"], strict=True)
        )
        # which blocks they are comes with the state dict
        mask = torch.arange(rows * columns).view(rows, columns) < sizes["kept"]
        dense = nn.Linear(sizes["shape"][1], sizes["shape"][0], layer.bias is not None)
        sparse = BlockSparseLinear.from_linear(
            dense, tuple(sizes["block"]), mask=mask, activation=sizes["activation"]
        )
        model.set_submodule(name, sparse)


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    node_features: int | Sequence[int],
    num_tasks: int,
    edge_features: int | Sequence[int] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a network: `model.safetensors` and `config.json` in a folder.

    Args:
        model: GraphGPS, GraphTrans, Graphormer or LiGhT, compact where it was pruned.
        path: of the folder; made when missing.
        node_features, num_tasks, edge_features: what the network was made with.
        about: more for config.json, such as the data set; anything JSON takes.

    Raises:
        TypeError: another kind of network.
    """
    kind = type(model).__name__
    if kind not in _MODELS:
        raise TypeError(f"model must be one of {', '.join(_MODELS)}, got {kind}")
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    settings: Any = model.settings
    config = {
        "format": MODEL_FORMAT,
        "model": kind,
        "settings": dataclasses.asdict(settings),
        "node_features": node_features,
        "num_tasks": num_tasks,
        "edge_features": edge_features,
        "structure": structure_of(model),
        "about": dict(about or {}),
    }
    weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    for name, write in (
        (_WEIGHTS, lambda part: save_file(weights, part)),
        (_CONFIG, lambda part: part.write_text(json.dumps(config, indent=2) + "\n")),
    ):
        part = folder / f".{name}.part"
        write(part)
        os.replace(part, folder / name)


def load_model(
    path: str | os.PathLike[str],
    *,
    attend: Callable[..., Tensor] = ops.ragged_attention,
) -> nn.Module:
    """Read a network that `save_model` wrote: a plain module, in evaluation.

    Args:
        path: of the folder.
        attend: ragged_attention, or a function of the same arguments.

    Raises:
        FileNotFoundError: a file is missing. ValueError: the files are of another version or
            architecture, or broken; says what is wrong.
    """
    folder = pathlib.Path(path)
    config = read_config(folder)
    try:
        weights = load_file(folder / _WEIGHTS)
        cls = getattr(gtkern.models, config["model"])
        settings_class = getattr(gtkern.models, f"{config['model']}Settings")
        model: nn.Module = cls(
            config["node_features"],
            config["num_tasks"],
            settings_class(**config["settings"]),
            edge_features=config["edge_features"],
            attend=attend,
        )
        apply_structure(model, config["structure"])
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(f"cannot read the model in {folder}: {error}") from error
    return model.eval()


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_model` wrote of a network beside its weights: the keys of its config.json.

    Raises:
        FileNotFoundError, ValueError: as `load_model`.
    """
    folder = pathlib.Path(path)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is not there: path must name a saved model")
    try:
        config: dict[str, Any] = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if config["format"] > MODEL_FORMAT:
            raise ValueError(f"format must be at most {MODEL_FORMAT}, got {config['format']}")
        if config["model"] not in _MODELS:
            raise ValueError(f"model must be one of {', '.join(_MODELS)}, got {config['model']!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read the model in {folder}: {error}") from error
    return config


def _part(model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{type(model).__name__} has no {name}") from None
