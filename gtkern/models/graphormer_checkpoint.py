"""Parameters of Microsoft's and Hugging Face's Graphormer checkpoints."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from gtkern.models import checkpoints
from gtkern.models.checkpoints import CheckpointReport, Piece
from gtkern.models.graphormer import Graphormer

__all__ = ["load_checkpoint"]

_COLUMN_ROWS = 512
"""Rows of the released embeddings for each column of features."""

_FIRST_EDGE_ROW = 3
"""The row of an edge feature's value 0: those before it are padding and pairs without an edge."""


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
    state = _stripped(checkpoints.read_state(checkpoint))
    report = checkpoints.fill(model, state, _pieces(model, first_atom_row))
    edges = "graph_encoder.graph_attn_bias.edge_encoder.weight"
    padded = edges in state and edges not in report.unexpected and bool(state[edges][0].any())
    return dataclasses.replace(report, padding=(edges,) if padded else ())


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


def _pieces(model: Graphormer, first_atom_row: int) -> Iterator[Piece]:
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
        yield Piece(
            f"{name}.weight",
            (f"{nodes}{name}_encoder.weight",),
            table.weight,
            _rows(1, 1 + rows),
        )
    yield Piece("token", (nodes + "graph_token.weight",), model.token, checkpoints.same)
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
    yield Piece(
        "head.weight",
        ("embed_out.weight", "classifier.classifier.weight"),
        model.head.weight,
        checkpoints.same,
    )
    yield Piece(
        "head.bias",
        ("lm_output_learned_bias", "classifier.lm_output_learned_bias"),
        model.head.bias,
        lambda value: value.expand(tasks) if value.numel() == 1 else value,
    )


def _rows(begin: int, end: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value[begin:end]


def _module(name: str, key: str, module: nn.Module) -> Iterator[Piece]:
    for part, parameter in module.named_parameters():
        yield Piece(f"{name}.{part}", (f"{key}.{part}",), parameter, checkpoints.same)


def _columns(name: str, key: str, table: Tensor, sizes: Any, first_row: int) -> Iterator[Piece]:
    """The columns of a table of features, which follow each other here and are 512 apart there."""
    for column, into in enumerate(table.split(list(sizes))):
        begin = column * _COLUMN_ROWS + first_row
        # a column must not run into the next one's rows
        end = begin + min(into.size(0), _COLUMN_ROWS - first_row)
        yield Piece(name, (key,), into, _rows(begin, end))


def _biases(model: Graphormer, key: str) -> Iterator[Piece]:
    bias, rows = model.bias, model.bias.distance.size(0)
    spatial = (key + "spatial_pos_encoder.weight",)
    yield Piece(
        "bias.virtual_distance",
        (key + "graph_token_virtual_distance.weight",),
        bias.virtual_distance,
        checkpoints.same,
    )
    # row 0 is padding, and the last one that of pairs without a path
    yield Piece(
        "bias.distance",
        spatial,
        bias.distance[:-1],
        lambda value: value[1 : min(rows, len(value) - 1)],
    )
    yield Piece("bias.distance", spatial, bias.distance[-1:], lambda value: value[-1:])
    if bias.edge is None or bias.hop is None:
        return
    yield from _columns(
        "bias.edge", key + "edge_encoder.weight", bias.edge, bias.edge_features, _FIRST_EDGE_ROW
    )
    hops, square = bias.hop.size(0), bias.heads**2
    yield Piece(
        "bias.hop",
        (key + "edge_dis_encoder.weight",),
        bias.hop,
        lambda value: (
            value if value.numel() % square else value.reshape(-1, bias.heads, bias.heads)[:hops]
        ),
    )


def _layer(name: str, key: str, layer: Any) -> Iterator[Piece]:
    attention = layer.attention
    for part in ("weight", "bias"):
        whole = getattr(attention, f"in_proj_{part}")
        for which, into in zip("qkv", whole.chunk(3), strict=True):
            yield Piece(
                f"{name}attention.in_proj_{part}",
                (f"{key}self_attn.{which}_proj.{part}",),
                into,
                checkpoints.same,
            )
    for own, theirs in (
        ("attention.out_proj", "self_attn.out_proj"),
        ("attention_norm", "self_attn_layer_norm"),
        ("widen", "fc1"),
        ("narrow", "fc2"),
        ("output_norm", "final_layer_norm"),
    ):
        yield from _module(name + own, key + theirs, layer.get_submodule(own))
