"""Parameters of KPGT's checkpoints of LiGhT."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gtkern.models import checkpoints
from gtkern.models.checkpoints import CheckpointReport, Piece, same
from gtkern.models.light import LiGhT, LiGhTSettings

__all__ = ["KPGT_EDGE_FEATURES", "KPGT_NODE_FEATURES", "kpgt_base", "load_light_checkpoint"]

KPGT_NODE_FEATURES, KPGT_EDGE_FEATURES = 137, 14
"""The numbers that KPGT's code describes an atom and a bond by."""


def kpgt_base() -> LiGhTSettings:
    """The settings of KPGT's released network."""
    return LiGhTSettings(fingerprint_features=512, descriptor_features=200)


def load_light_checkpoint(
    model: LiGhT, checkpoint: str | os.PathLike[str] | Mapping[str, Any]
) -> CheckpointReport:
    """Fill a network's parameters from a checkpoint of the released KPGT.

    What does not fit stays as it is and is reported. The released network has no head for a task,
    but predictors of its pre-training and vectors of its masks: they are reported as unexpected.
    Its keys and queries change places: there a row is weighed by its query, here by its key.

    Args:
        model: made for KPGT_NODE_FEATURES and KPGT_EDGE_FEATURES.
        checkpoint: a file that torch.save wrote, or a .safetensors file, or what is in it: the
            state dict, or a mapping that has it as "model" or "state_dict".

    Raises:
        ValueError: the file cannot be read as one, or has no parameter of a LiGhT.
        FileNotFoundError: there is no such file.

    Reference: the names are those of the released src/model/light.py.
    """
    found = checkpoints.read_state(checkpoint)
    state = {key.removeprefix("module."): value for key, value in found.items()}
    if not any(key.startswith("model.mol_T_layers.") for key in state):
        raise ValueError(
            f"checkpoint must have keys of a LiGhT's model.mol_T_layers, got {len(state)} others"
        )
    return checkpoints.fill(model, state, _pieces(model))


def _pieces(model: LiGhT) -> Iterator[Piece]:
    triplets, bias = model.triplets, model.bias
    for name, encoder in (("node", triplets.node_encoder), ("edge", triplets.edge_encoder)):
        if encoder.linear is not None:
            yield from _module(
                f"triplets.{name}_encoder.linear", f"{name}_emb.in_proj", encoder.linear
            )
    for own, key in (
        ("virtual_atom", "node_emb.virtual_atom_emb.weight"),
        # the misspelling is the released one
        ("virtual_bond", "edge_emb.virutal_bond_emb.weight"),
    ):
        yield Piece(f"triplets.{own}", (key,), getattr(triplets, own), same)
    yield from _mlp("triplets.mix", "triplet_emb.in_proj", triplets.mix)
    for own, key in (("fingerprint", "fp_proj"), ("descriptors", "md_proj")):
        if own in model.virtual:
            yield from _mlp(f"virtual.{own}", f"triplet_emb.{key}", model.virtual[own])
    yield from _distances(model)
    for own, key in (("by_distance", "dist_attn_layer"), ("by_path", "path_attn_layer")):
        yield from _module(f"bias.{own}", f"model.{key}", getattr(bias, own))
    for number, place in enumerate(bias.places):
        yield from _mlp(f"bias.places.{number}", f"model.trip_fortrans.{number}", place)
    for depth, layer in enumerate(model.layers):
        yield from _layer(f"layers.{depth}.", f"model.mol_T_layers.{depth}.", layer)


def _module(name: str, key: str, module: nn.Module) -> Iterator[Piece]:
    for part, parameter in module.named_parameters():
        yield Piece(f"{name}.{part}", (f"{key}.{part}",), parameter, same)


def _mlp(name: str, key: str, module: nn.Module) -> Iterator[Piece]:
    """Two linear layers, the second behind the activation."""
    for own, theirs in (("0", "in_proj"), ("2", "out_proj")):
        yield from _module(f"{name}.{own}", f"{key}.{theirs}", module.get_submodule(own))


def _distances(model: LiGhT) -> Iterator[Piece]:
    """The kinds of paths: a self loop, so many triplets, a virtual node."""
    name, weight = "bias.distance.weight", model.bias.distance.weight
    length = model.settings.path_length
    yield Piece(name, ("model.self_loop_emb.weight",), weight[:1], same)
    yield Piece(name, ("model.path_len_emb.weight",), weight[1:length], _rows(2, length + 1))
    if model.bias.kinds > length:
        yield Piece(name, ("model.virtual_path_emb.weight",), weight[length:], same)


def _rows(begin: int, end: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value[begin:end]


def _layer(name: str, key: str, layer: Any) -> Iterator[Piece]:
    for part in ("weight", "bias"):
        yield Piece(
            f"{name}attention.in_proj_{part}",
            (f"{key}qkv.{part}",),
            getattr(layer.attention, f"in_proj_{part}"),
            _exchanged,
        )
    for own, theirs in (
        ("attention_norm", "attention_norm"),
        ("attention.out_proj", "node_out_layer.in_proj"),
        ("output_norm", "node_out_layer.norm"),
        ("widen", "node_out_layer.ffn.in_proj"),
        ("narrow", "node_out_layer.ffn.out_proj"),
    ):
        yield from _module(name + own, key + theirs, layer.get_submodule(own))


def _exchanged(value: Tensor) -> Tensor:
    """Keys, queries, values from queries, keys, values."""
    if value.size(0) % 3:
        return value
    query, key, rest = value.chunk(3)
    return torch.cat((key, query, rest))
