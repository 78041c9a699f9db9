"""The options that several commands have."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

__all__ = [
    "BackendOption",
    "ConfigOption",
    "DataRootOption",
    "DatasetOption",
    "DevicesOption",
    "EdgesOption",
    "EpochsOption",
    "FoldsOption",
    "GraphsOption",
    "LabelOption",
    "LanguageModelOption",
    "ModelOption",
    "NodesOption",
    "ResumeOption",
    "SeedOption",
    "SetOption",
    "TextColumnsOption",
    "TextsOption",
]

DatasetOption = Annotated[
    str | None,
    typer.Option(
        help="A data set of the paper, or power-law; that and, without --data-root, "
        "minesweeper are generated."
    ),
]
DataRootOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="Folder of published files, as PyG's and OGB's loaders lay them out."),
]
ConfigOption = Annotated[
    pathlib.Path | None, typer.Option(help="YAML of settings instead of the paper's.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in phase1.lr=0.02."),
]
EpochsOption = Annotated[
    str | None, typer.Option(metavar="N|N1,N2", help="Epochs of both phases, or of each.")
]
ModelOption = Annotated[
    str | None, typer.Option(help="graphgps, graphtrans, graphormer or light; default: graphgps.")
]
GraphsOption = Annotated[
    str | None,
    typer.Option(help="A set of graphs, such as nci1, molhiv or esol; default: synthetic."),
]
FoldsOption = Annotated[
    int | None,
    typer.Option(metavar="K", help="Cross-validate: a run for each of K parts as its test."),
]
BackendOption = Annotated[
    str, typer.Option(help="auto, reference, cpu, triton or cuda; a named one never falls back")
]
DevicesOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SeedOption = Annotated[int | None, typer.Option(help="Of everything random; default 0.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in the run folder.")
]
TextsOption = Annotated[
    str | None,
    typer.Option(
        help="cora-text, debian-packages, arxiv-text, files (with --nodes and --edges) or "
        "synthetic; default: synthetic."
    ),
]
NodesOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="Your own nodes, .csv or .parquet: columns id, text, label, maybe split."),
]
EdgesOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="Your own edges: two columns of ids, .csv, .parquet or .npy."),
]
TextColumnsOption = Annotated[
    str | None, typer.Option(metavar="NAME,...", help="Columns of --nodes that are the text.")
]
LabelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of --nodes that is the class.")
]
LanguageModelOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="Folder of a Hugging Face encoder; default: a small random one."),
]
