"""gtkern pretrain."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

from gtkern.cli.inputs import check_known, load_graph_data
from gtkern.cli.options import (
    BackendOption,
    ConfigOption,
    DataRootOption,
    DevicesOption,
    ResumeOption,
    SeedOption,
    SetOption,
)
from gtkern.cli.runs import train_method

__all__ = ["pretrain"]

DEFAULT = "molhiv"
"""The molecules without options."""


def pretrain(
    model: Annotated[
        str | None, typer.Option(help="graphormer or graphgps; default: graphormer.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A set of molecules; default: molhiv.")
    ] = None,
    smiles: Annotated[
        pathlib.Path | None,
        typer.Option(help="Instead: a file with a SMILES in each line, or a .csv with a column."),
    ] = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Run folder; default: runs/pretrain-MODEL-DATASET.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Epochs.")] = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
    resume: ResumeOption = False,
) -> None:
    """Pre-train a graph transformer on molecules; gtkern tune takes what it leaves.

    It learns rdkit's descriptors and fingerprint of whole molecules, and the elements of hidden
    atoms; labels are not read.
    """
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import UserError
    from gtkern.training.pretrain_settings import PRETRAINED, pretrain_settings_class

    if dataset is not None and smiles is not None:
        raise UserError("--dataset and --smiles name different molecules: give one of them")
    saved = out / "config.yaml" if resume and out is not None else None
    if model is None:
        source = config or saved
        known = settings_of.load(source) if source is not None and source.is_file() else {}
        model = str(known.get("model", PRETRAINED[0]))
    check_known("model to pre-train", model, PRETRAINED)
    if smiles is not None:
        dataset = smiles.stem
    elif dataset is None and config is None and not resume:
        dataset = DEFAULT
    if config is None and not resume:
        config = pathlib.Path(__file__).parents[1] / f"configs/pretrain/{model}.yaml"

    def load() -> Any:
        from gtkern.training.pretrain_run import PretrainRun

        return PretrainRun

    def data_of(settings: Any, root: pathlib.Path | None, folder: pathlib.Path) -> tuple[Any, str]:
        if smiles is None:
            return load_graph_data(settings, root, folder)
        from gtkern.data import read_smiles

        try:
            return read_smiles(smiles, on_bad=settings.on_bad), settings.dataset
        except (ImportError, OSError, ValueError) as error:
            raise UserError(f"cannot read --smiles: {error}") from error

    train_method(
        f"pretrain-{model}",
        pretrain_settings_class(model),
        ("training.epochs",),
        load,
        dataset=dataset,
        data_root=data_root,
        out=out,
        config=config,
        assignments=set_,
        seed=seed,
        epochs=epochs,
        backend=backend,
        devices=devices,
        resume=resume,
        default=DEFAULT,
        data_of=data_of,
    )
