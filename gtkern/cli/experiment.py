"""gtkern experiment."""

from __future__ import annotations

import pathlib
import shlex
import sys
from typing import Annotated

import typer
from rich.console import Console

from gtkern.cli.inputs import (
    check_backend_name,
    check_known,
    integers,
    lasting,
    load_data,
    read_settings,
)
from gtkern.cli.options import (
    BackendOption,
    ConfigOption,
    DataRootOption,
    DatasetOption,
    DevicesOption,
    EdgesOption,
    EpochsOption,
    FoldsOption,
    GraphsOption,
    LabelOption,
    LanguageModelOption,
    ModelOption,
    NodesOption,
    SetOption,
    TextColumnsOption,
    TextsOption,
)
from gtkern.cli.tune import (
    BackboneOption,
    CheckpointOption,
    NetworkOption,
    SeedsOption,
    open_tunings,
)

__all__ = ["experiment"]

experiment = typer.Typer(no_args_is_help=True, help="Do a paper's experiments again.")


@experiment.command(no_args_is_help=True)
def spexphormer(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="main, ablations, edges, batches or consistency."),
    ],
    dataset: DatasetOption = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of all experiments; default: runs/spexphormer-DATASET-paper."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="One run for each.")] = "0,1,2",
    epochs: EpochsOption = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Batch sizes of batches (default: all training nodes, half of them, ...), widths "
            "of consistency (default: 4,8,16,32,64).",
        ),
    ] = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
) -> None:
    """Do an experiment of Spexphormer's paper: runs, a table and a plot.

    main: every seed, and the paper's figure. ablations: without one part at a time. edges: how many
    are kept. batches: time and memory by batch size. consistency: scores of narrow networks beside
    those of a wide one.

    A run that is finished in the folder is not done again; one that was stopped goes on.
    """
    from gtkern.methods.spexphormer.settings import Settings
    from gtkern.training.errors import UserError

    check_backend_name(backend)
    check_known("experiment", name, ("main", "ablations", "edges", "batches", "consistency"))
    seed_list = integers("--seeds", seeds)
    size_list = [] if sizes is None else integers("--sizes", sizes)
    if any(assignment.partition("=")[0].strip() == "seed" for assignment in set_ or []):
        raise UserError("the seeds of an experiment are set by --seeds, got --set seed")
    for seed in seed_list:
        # a seed out of range shows before any run; the others are alike
        settings = read_settings(
            "spexphormer",
            Settings,
            ("phase1.epochs", "phase2.epochs"),
            dataset=dataset,
            config=config,
            assignments=set_ or [],
            seed=seed,
            epochs=epochs,
        )
    folder_path = out or pathlib.Path("runs") / f"spexphormer-{settings.dataset}-paper"

    with lasting():
        from gtkern.methods.spexphormer.experiments import Experiments
        from gtkern.methods.spexphormer.kept_runs import Runs
        from gtkern.training import memory
        from gtkern.training.fit import join_processes
        from gtkern.training.run import RunFolder

    memory.keep_freed_memory()
    device = join_processes(devices)
    data, data_name = load_data(settings, data_root, folder_path)
    folder = RunFolder(folder_path)
    try:
        runs = Runs(
            settings,
            data,
            folder,
            dataset=data_name,
            device=device,
            backend=backend,
            command=shlex.join(["gtkern", *sys.argv[1:]]),
            console=Console(stderr=True),
        )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    result = Experiments(runs, seed_list).run(name, size_list)
    console = Console()
    console.print(result.table())
    console.print(f"{folder.path / name}.csv and .png; the runs are beside them", highlight=False)


@experiment.command(no_args_is_help=True)
def graph(
    model: ModelOption = None,
    dataset: GraphsOption = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of all runs; default: runs/MODEL-DATASET-runs."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="One run for each.")] = "0,1,2,3,4",
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Epochs.")] = None,
    folds: FoldsOption = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
) -> None:
    """Train a graph transformer with several seeds: the runs, their mean and curves.

    With --folds every fold is a run too. A run that is finished in the folder is not done again;
    one that was stopped goes on.
    """
    from gtkern.cli.graphs import known_model, repeat

    repeat(
        known_model(model, config),
        seeds=seeds,
        seed=None,
        dataset=dataset,
        data_root=data_root,
        out=out,
        config=config,
        assignments=set_,
        epochs=epochs,
        folds=folds,
        backend=backend,
        devices=devices,
        resume=True,
    )


@experiment.command(no_args_is_help=True)
def gtsp(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ratios, budget or order.")],
    model: ModelOption = None,
    dataset: GraphsOption = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of all experiments; default: runs/gtsp-MODEL-DATASET."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    base_set: Annotated[
        list[str] | None,
        typer.Option("--base-set", metavar="KEY=VALUE", help="Change a setting of the network."),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="One run for each.")] = "0,1,2,3,4",
    ratios: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,...",
            help="What is kept; default: 0.25,0.5,0.75, of budget 0.5, of order 0.5.",
        ),
    ] = None,
    dimensions: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", help="What `ratios` varies; default: all four."),
    ] = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Of pruning.")] = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
) -> None:
    """Do an experiment of GTSP's paper on one set of graphs: runs, a table and plots.

    ratios: tokens, heads, layers and weights, each by itself at each ratio. budget: ways to split a
    share of the FLOPs among all four; the best on validation is the one for the data set. order:
    all four at once, or one behind the other.

    A run that is finished in the folder is not done again; one that was stopped goes on.
    """
    from gtkern.cli.graphs import DEFAULT, known_model
    from gtkern.cli.inputs import load_graph_data, numbers
    from gtkern.methods.gtsp.settings import DIMENSIONS, PruneSettings
    from gtkern.training.errors import UserError
    from gtkern.training.graph_settings import settings_class

    check_backend_name(backend)
    check_known("experiment", name, ("ratios", "budget", "order"))
    chosen = list(DIMENSIONS)
    if dimensions is not None:
        if name != "ratios":
            raise UserError(f"--dimensions is for ratios alone, got {name}")
        chosen = [each.strip() for each in dimensions.split(",")]
    for each in chosen:
        check_known("dimension", each, DIMENSIONS)
    seed_list = integers("--seeds", seeds)
    ratio_list = numbers("--ratios", ratios or ("0.25,0.5,0.75" if name == "ratios" else "0.5"))
    model = known_model(model, None)
    base = read_settings(
        model,
        settings_class(model),
        ("training.epochs",),
        dataset=dataset,
        default=DEFAULT,
        config=None,
        assignments=base_set or [],
        seed=None,
        epochs=None,
    )
    settings = read_settings(
        "gtsp",
        PruneSettings,
        ("training.epochs",),
        dataset=base.dataset if config is None else None,
        config=config,
        assignments=set_ or [],
        seed=None,
        epochs=epochs,
    )
    folder_path = out or pathlib.Path("runs") / f"gtsp-{model}-{base.dataset}"

    with lasting():
        from gtkern.methods.gtsp.experiments import PruningExperiments
        from gtkern.training import memory
        from gtkern.training.fit import join_processes
        from gtkern.training.run import RunFolder

    memory.keep_freed_memory()
    device = join_processes(devices)
    data, data_name = load_graph_data(base, data_root, folder_path)
    try:
        experiments = PruningExperiments(
            base,
            settings,
            data,
            RunFolder(folder_path),
            seed_list,
            dataset=data_name,
            dimensions=chosen,
            device=device,
            backend=backend,
            command=shlex.join(["gtkern", *sys.argv[1:]]),
            console=Console(stderr=True),
        )
        table = experiments.run(name, ratio_list)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    console = Console()
    console.print(table)
    console.print(f"{folder_path / name}.csv and .png; the runs are beside them", highlight=False)


@experiment.command(no_args_is_help=True)
def deepgpt(
    name: Annotated[str, typer.Argument(metavar="NAME", help="main, prefixes, depth or parts.")],
    backbone: BackboneOption = None,
    datasets: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Sets of molecules.")
    ] = "bace,esol,freesolv,tox21",
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Folder of all runs; default: runs/deepgpt-MODEL.")
    ] = None,
    seeds: SeedsOption = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Tokens of prefixes (default: 1,2,5,10,20,40), layers of depth (1,2,4,8).",
        ),
    ] = None,
    model: CheckpointOption = None,
    network: NetworkOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Epochs.")] = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
) -> None:
    """Do an experiment of DeepGPT's paper on some data sets: runs, a table and plots.

    main: prompts, the head alone, and all parameters. prefixes: numbers of tokens. depth: how many
    layers have prompts, the last ones, and all. parts: graph prompts, prefix tokens, both, none.

    A run that is finished in the folder is not done again; one that was stopped goes on. The runs
    of gtkern tune in the same folder are among them.
    """
    from gtkern.training.errors import UserError

    check_known("experiment", name, ("main", "prefixes", "depth", "parts"))
    size_list = [] if sizes is None else integers("--sizes", sizes)
    if size_list and name not in ("prefixes", "depth"):
        raise UserError(f"--sizes is of prefixes and depth, got it for {name}")
    if 0 in size_list:
        raise UserError(f"--sizes must be above 0, got {sizes}")
    tunings, path = open_tunings(
        backbone,
        [part.strip() for part in datasets.split(",")],
        data_root=data_root,
        out=out,
        model=model,
        network=network,
        config=config,
        assignments=set_ or [],
        seeds=seeds,
        epochs=epochs,
        backend=backend,
        devices=devices,
    )
    console = Console()
    console.print(tunings.run(name, size_list))
    console.print(f"{path / name}.csv and plots; the runs are beside them", highlight=False)


@experiment.command(no_args_is_help=True)
def leading(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="main, labels, parts, staleness, cost, sweeps."),
    ],
    dataset: TextsOption = None,
    data_root: Annotated[
        pathlib.Path | None, typer.Option(help="Folder that holds that of the data set.")
    ] = None,
    nodes: NodesOption = None,
    edges: EdgesOption = None,
    text: TextColumnsOption = None,
    label: LabelOption = None,
    lm: LanguageModelOption = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of all experiments; default: runs/leading-DATASET-experiments."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="One run for each.")] = "0,1,2",
    epochs: EpochsOption = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
) -> None:
    """Do an experiment of LEADING: runs, a table and a plot.

    main: the method, frozen embeddings, the language model alone, TF-IDF. labels: the same with few
    labels. parts: decoupling and the implicit layer, each alone. staleness: how often the memory
    bank is encoded anew. cost: time and memory of a step. sweeps: iterations to a tolerance.

    A run that is finished in the folder is not done again; one that was stopped goes on.
    """
    from gtkern.cli.texts import load_text_data, text_assignments
    from gtkern.methods.leading.settings import LeadingSettings
    from gtkern.training.errors import UserError

    check_backend_name(backend)
    check_known("experiment", name, ("main", "labels", "parts", "staleness", "cost", "sweeps"))
    seed_list = integers("--seeds", seeds)
    dataset, changes = text_assignments(dataset, nodes, edges, text, label, lm)
    settings = read_settings(
        "leading",
        LeadingSettings,
        ("features.epochs", "training.epochs"),
        dataset=dataset,
        default="synthetic",
        config=config,
        assignments=[*changes, *(set_ or [])],
        seed=seed_list[0],
        epochs=epochs,
    )
    folder_path = out or pathlib.Path("runs") / f"leading-{settings.dataset}-experiments"
    # data that cannot be read show before any run
    _, data_name = load_text_data(settings, data_root, folder_path)

    with lasting():
        from gtkern.methods.leading.experiments import Experiments
        from gtkern.training import memory
        from gtkern.training.fit import join_processes
        from gtkern.training.run import RunFolder

    memory.keep_freed_memory()
    folder = RunFolder(folder_path)
    try:
        experiments = Experiments(
            settings,
            lambda chosen: load_text_data(chosen, data_root, folder_path)[0],
            folder,
            seed_list,
            dataset=data_name,
            device=join_processes(devices),
            backend=backend,
            command=shlex.join(["gtkern", *sys.argv[1:]]),
            console=Console(stderr=True),
        )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    console = Console()
    console.print(experiments.run(name))
    console.print(f"{folder.path / name}.csv and .png; the runs are beside them", highlight=False)
