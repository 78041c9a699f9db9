"""Parameters of Microsoft's and Hugging Face's Graphormer checkpoints."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gtkern.models.graphormer import Graphormer

__all__ = ["CheckpointReport", "load_checkpoint"]

_COLUMN_ROWS = 512
"""Rows of the released embeddings for each column of features."""

_FIRST_EDGE_ROW = 3
"""The row of an edge feature's value 0: those before it are padding and pairs without an edge."""


@dataclass(frozen=True)
class CheckpointReport:
    """What became of a checkpoint.

    Attributes:
        loaded: the network's parameters that were filled.
        missing: those that were not, or not all of them.
        unexpected: keys of the checkpoint that no parameter reads.
        mismatched: (key, shape that the network needs of it, shape found), which were not read.
        padding: keys whose padding row is not 0. The released code adds that row for each edge that
            a path is shorter than the longest of its batch; this network does not.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, list[int], list[int]], ...]
    padding: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded"]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("padding that is not 0", self.padding),
        ):
            if names:
                lines.append(f"{title}: {', '.join(names)}")
        for key, expected, got in self.mismatched:
            lines.append(f"{key} must give {expected}, has {got}")
        return "\n".join(lines)


class _Piece(NamedTuple):
    """A part of a parameter, and where it stands in a checkpoint.

    Attributes:
        name: of the parameter.
        keys: of the checkpoint, without what stands before "graph_encoder."; one of them is there.
        into: the part, a view of the parameter.
        take: from the checkpoint's tensor to what belongs there; of another shape if it is too
            small.
    """

    name: str
    keys: tuple[str, ...]
    into: Tensor
    take: Callable[[Tensor], Tensor]


def load_checkpoint(
    model: Graphormer,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    *,
    first_atom_row: int = 2,
) -> CheckpointReport:
    """Fill a network's parameters from a checkpoint of the released Graphormer.

    What does not fit stays as it is and is reported.

    Args:
        model: its settings decide which rows of the checkpoint's tables are read.
        checkpoint: a file that torch.save wrote, or a .safetensors file, or what is in it: the
            state dict, or a mapping that has it as "model" or "state_dict".
        first_atom_row: the row of a node feature's value 0 in its column's 512 rows: 2 where
            Microsoft's code made the data that the parameters were trained on, 3 where Hugging
            Face's collator did.

    Raises:
        ValueError: the file cannot be read as one, or has no parameter of a Graphormer.
        FileNotFoundError: there is no such file.
    """
    state = _stripped(_state(checkpoint))
    pieces = list(_pieces(model, first_atom_row))
    filled: dict[str, bool] = {}
    mismatched: dict[str, tuple[str, list[int], list[int]]] = {}
    used = set()
    with torch.no_grad():
        for piece in pieces:
            key = next((key for key in piece.keys if key in state), None)
            value = None if key is None else piece.take(state[key])
            fits = value is not None and value.shape == piece.into.shape
            filled[piece.name] = filled.get(piece.name, True) and fits
            if key is not None and value is not None:
                used.add(key)
                if fits:
                    piece.into.copy_(value)
                else:
                    shapes = list(piece.into.shape), list(value.shape)
                    mismatched[key] = (key, *shapes)
    names = [name for name, _ in model.named_parameters()]
    edges = "graph_encoder.graph_attn_bias.edge_encoder.weight"
    return CheckpointReport(
        loaded=tuple(name for name in names if filled.get(name)),
        missing=tuple(name for name in names if not filled.get(name)),
        unexpected=tuple(key for key in state if key not in used),
        mismatched=tuple(mismatched.values()),
        padding=(edges,) if edges in used and bool(state[edges][0].any()) else (),
    )


def _state(checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    found: Any = checkpoint
    if not isinstance(checkpoint, Mapping):
        path = os.fspath(checkpoint)
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            try:
                found = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise ValueError(
                    f"checkpoint {path} must hold tensors alone, and holds other objects; load it "
                    "in a program that you trust it with, and pass its state dict"
                ) from error
    for name in ("model", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping):
        raise ValueError(f"checkpoint must be a state dict, got {type(found).__name__}")
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


def _stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what stands before "graph_encoder.", such as "encoder." or "module.encoder."."""
    begin = next(
        (key[: key.find("graph_encoder.")] for key in state if "graph_encoder." in key), None
    )
    if begin is None:
        raise ValueError(
            f"checkpoint must have keys of a Graphormer's graph_encoder, got {len(state)} others"
        )
    return {key.removeprefix(begin): value for key, value in state.items()}


def _pieces(model: Graphormer, first_atom_row: int) -> Iterator[_Piece]:
    encoder = "graph_encoder."
    nodes, pairs = encoder + "graph_node_feature.", encoder + "graph_attn_bias."
    if model.node_encoder.table is not None:
        yield from _columns(
            "node_encoder.table.weight",
            nodes + "atom_encoder.weight",
            model.node_encoder.table.weight,
            model.node_encoder.features,
            first_atom_row,
        )
    for name, table in (("in_degree", model.in_degree), ("out_degree", model.out_degree)):
        rows = table.weight.size(0)
        yield _Piece(
            f"{name}.weight",
            (f"{nodes}{name}_encoder.weight",),
            table.weight,
            _rows(1, 1 + rows),
        )
    yield _Piece("token", (nodes + "graph_token.weight",), model.token, _same)
    yield from _biases(model, pairs)
    norms = {"input_norm": model.input_norm, "transform_norm": model.transform_norm}
    heads = {"input_norm": encoder + "emb_layer_norm", "transform_norm": "layer_norm"}
    for name, norm in norms.items():
        if norm is not None:
            yield from _module(name, heads[name], norm)
    for depth, layer in enumerate(model.layers):
        yield from _layer(f"layers.{depth}.", f"{encoder}layers.{depth}.", layer)
    yield from _module("transform", "lm_head_transform_weight", model.transform)
    tasks = model.head.weight.size(0)
    yield _Piece(
        "head.weight",
        ("embed_out.weight", "classifier.classifier.weight"),
        model.head.weight,
        _same,
    )
    yield _Piece(
        "head.bias",
        ("lm_output_learned_bias", "classifier.lm_output_learned_bias"),
        model.head.bias,
        lambda value: value.expand(tasks) if value.numel() == 1 else value,
    )


def _same(value: Tensor) -> Tensor:
    return value


def _rows(begin: int, end: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value[begin:end]


def _module(name: str, key: str, module: nn.Module) -> Iterator[_Piece]:
    for part, parameter in module.named_parameters():
        yield _Piece(f"{name}.{part}", (f"{key}.{part}",), parameter, _same)


def _columns(name: str, key: str, table: Tensor, sizes: Any, first_row: int) -> Iterator[_Piece]:
    """The columns of a table of features, which follow each other here and are 512 apart there."""
    for column, into in enumerate(table.split(list(sizes))):
        begin = column * _COLUMN_ROWS + first_row
        # a column must not run into the next one's rows
        end = begin + min(into.size(0), _COLUMN_ROWS - first_row)
        yield _Piece(name, (key,), into, _rows(begin, end))


def _biases(model: Graphormer, key: str) -> Iterator[_Piece]:
    bias, rows = model.bias, model.bias.distance.size(0)
    spatial = (key + "spatial_pos_encoder.weight",)
    yield _Piece(
        "bias.virtual_distance",
        (key + "graph_token_virtual_distance.weight",),
        bias.virtual_distance,
        _same,
    )
    # row 0 is padding, and the last one that of pairs without a path
    yield _Piece(
        "bias.distance",
        spatial,
        bias.distance[:-1],
        lambda value: value[1 : min(rows, len(value) - 1)],
    )
    yield _Piece("bias.distance", spatial, bias.distance[-1:], lambda value: value[-1:])
    if bias.edge is None or bias.hop is None:
        return
    yield from _columns(
        "bias.edge", key + "edge_encoder.weight", bias.edge, bias.edge_features, _FIRST_EDGE_ROW
    )
    hops, square = bias.hop.size(0), bias.heads**2
    yield _Piece(
        "bias.hop",
        (key + "edge_dis_encoder.weight",),
        bias.hop,
        lambda value: (
            value if value.numel() % square else value.reshape(-1, bias.heads, bias.heads)[:hops]
        ),
    )


def _layer(name: str, key: str, layer: Any) -> Iterator[_Piece]:
    attention = layer.attention
    for part in ("weight", "bias"):
        whole = getattr(attention, f"in_proj_{part}")
        for which, into in zip("qkv", whole.chunk(3), strict=True):
            yield _Piece(
                f"{name}attention.in_proj_{part}",
                (f"{key}self_attn.{which}_proj.{part}",),
                into,
                _same,
            )
    for own, theirs in (
        ("attention.out_proj", "self_attn.out_proj"),
        ("attention_norm", "self_attn_layer_norm"),
        ("widen", "fc1"),
        ("narrow", "fc2"),
        ("output_norm", "final_layer_norm"),
    ):
        yield from _module(name + own, key + theirs, layer.get_submodule(own))
