"""Times a step of LEADING against fine-tuning the same language model without the graph.

Beside both the language model as Hugging Face runs it, its texts side by side and filled up.

python -m bench.texts [--lm FOLDER] [--dataset cora-text --data-root FOLDER] [--batch 16]
                      [--fanout 10] [--max-tokens 256] [--precision bfloat16] [--device cpu]
                      [--out CSV]
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table

from bench.harness import Clock, peak_memory, race
from bench.limits import Limits
from bench.records import Record, conditions, save
from gtkern.data import TextGraph, load_text_graph, undirected
from gtkern.methods.leading import (
    LanguageModel,
    MemoryBank,
    TokenizedTexts,
    tokenize,
    train_tokenizer,
)
from gtkern.methods.leading.blocks import Blocks
from gtkern.methods.leading.lazy import LazyMemory
from gtkern.methods.leading.network import GraphPart, TextGraphNetwork
from gtkern.methods.leading.settings import (
    EncoderSettings,
    EndToEnd,
    FeatureTraining,
    LeadingSettings,
    NeighborSettings,
    PropagationSettings,
)
from gtkern.methods.leading.task import EndToEndTask
from gtkern.training.memory import keep_freed_memory

__all__ = ["main"]

SIDES = {
    "LEADING": ("leading", True),
    "without the graph": ("language-model", True),
    "without the graph, padded": ("language-model", False),
    "neighbours with gradient": ("joint", True),
}
"""What is trained, and whether texts are packed."""
MINILM = {"width": 384, "layers": 6, "heads": 12}
"""Sizes of MiniLM-L6."""


def some_texts(nodes: int = 2000, words: float = 110.0) -> TextGraph:
    """Texts of random words, their lengths lognormal as those of abstracts; ten neighbours each."""
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.randn(nodes, generator=generator) * 0.5 + math.log(words)).exp().long() + 3
    texts = [
        " ".join(
            f"w{int(word)}" for word in torch.randint(3000, (int(length),), generator=generator)
        )
        for length in lengths
    ]
    part = torch.randint(3, (nodes,), generator=generator)
    ends = torch.randint(nodes, (2, 5 * nodes), generator=generator)
    return TextGraph(
        texts,
        torch.randint(7, (nodes,), generator=generator),
        undirected(ends, nodes),
        *(part == number for number in range(3)),
        tuple(f"class {number}" for number in range(7)),
        "generated",
    )


def _step(
    side: str,
    model: LanguageModel,
    tokens: TokenizedTexts,
    data: TextGraph,
    options: argparse.Namespace,
) -> Callable[[], None]:
    """A step of training on the same targets every time, the bank being there."""
    train, _ = SIDES[side]
    settings = LeadingSettings(
        dataset="synthetic",
        train=train,
        encoder=EncoderSettings(precision=options.precision),
        propagation=PropagationSettings(kind="none" if train == "language-model" else "implicit"),
        neighbors=NeighborSettings(fanout=options.fanout),
        features=FeatureTraining(epochs=1, lr=1e-3),
        training=EndToEnd(epochs=1, lr=1e-3, batch_size=options.batch),
    )
    width = settings.propagation.width
    network = TextGraphNetwork(
        model, GraphPart(model.width, data.num_classes, settings.propagation)
    ).to(options.device)
    bank = lazy = None
    if train == "leading":
        bank = MemoryBank(data.num_nodes, model.width, identity="bench")
        bank.write(torch.arange(data.num_nodes), torch.randn(data.num_nodes, model.width), step=0)
        lazy = LazyMemory(data.num_nodes, width, beta=0.5, theta=0.5, identity="bench")
    blocks = Blocks(data.edge_index, data.num_nodes, fanout=options.fanout, hops=1)
    task = EndToEndTask(network, tokens, data, blocks, settings, bank=bank, lazy=lazy)
    task.y = task.y.to(options.device)
    targets = data.train_mask.nonzero().flatten()[: options.batch]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        # the block is part of a step
        task.training_step(task.make(targets, 0), 0).backward()
        optimizer.step()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.texts",
        description="Time a step of LEADING against fine-tuning without the graph.",
    )
    parser.add_argument("--lm", help="folder of an encoder; default: MiniLM's size, random weights")
    parser.add_argument("--dataset", help="take the texts of this set; default: generated ones")
    parser.add_argument("--data-root", help="where the set is")
    parser.add_argument("--batch", type=int, default=16, help="targets")
    parser.add_argument("--fanout", type=int, default=10, help="neighbours of each")
    parser.add_argument("--max-tokens", type=int, default=256, help="of a text")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--out", type=pathlib.Path, metavar="CSV", help="add the rows to this file")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each side")
    options = parser.parse_args(arguments)

    keep_freed_memory()
    data = load_text_graph(options.dataset, options.data_root) if options.dataset else some_texts()
    tokenizer = None if options.lm else train_tokenizer(data.texts, max_tokens=512)

    def model(packed: bool) -> LanguageModel:
        torch.manual_seed(0)
        if tokenizer is None:
            return LanguageModel.from_path(options.lm, packed=packed)
        return LanguageModel.small(tokenizer, **MINILM, max_tokens=512, packed=packed)

    models = [model(packed) for _, packed in SIDES.values()]
    tokens = tokenize(data.texts, models[0].tokenizer, max_tokens=options.max_tokens)
    calls = [
        _step(side, each, tokens, data, options) for side, each in zip(SIDES, models, strict=True)
    ]
    for call in calls:
        call()
    samples = race(calls, Clock(options.device), budget_s=options.budget)
    peaks = [peak_memory(call, options.device)[1] for call in calls]
    base = list(SIDES).index("without the graph")
    targets = data.train_mask.nonzero().flatten()[: options.batch]
    mean = float(tokens.lengths[tokens.text_of[targets]].float().mean())
    view = Table(
        title=f"a training step on {options.batch} texts of {mean:.0f} tokens on average, "
        f"{options.precision} on {options.device}"
    )
    for title in ("side", "ms", "± IQR", "times as long", "peak MiB", "times as much"):
        view.add_column(title, justify="left" if title == "side" else "right")
    for name, sample, peak in zip(SIDES, samples, peaks, strict=True):
        view.add_row(
            name,
            f"{sample.median * 1e3:.0f}",
            f"{sample.spread * 1e3:.0f}",
            f"{sample.ratio_to(samples[base]):.2f}",
            f"{peak / 2**20:.0f}",
            f"{peak / peaks[base]:.2f}",
        )
    if options.out:
        shared = conditions(options.device, Limits(options.device))
        case = f"{options.dataset or 'generated'}-{options.batch}-{options.fanout}"
        save(
            options.out,
            [
                Record(
                    "leading",
                    f"{case}-{options.precision}",
                    f"{options.batch} texts of {mean:.0f} tokens, {options.fanout} neighbours each",
                    "fwd+bwd",
                    options.precision,
                    "gtkern" if name == "LEADING" else name.replace(",", "").replace(" ", "-"),
                    ms=sample.median * 1e3,
                    iqr_ms=sample.spread * 1e3,
                    turns=len(sample.turns),
                    peak_mib=peak / 2**20,
                    ratio=(samples[2] if name == "LEADING" else sample).ratio_to(samples[0]),
                    note="a step of training, the optimizer's included",
                    **shared,
                )
                for name, sample, peak in zip(SIDES, samples, peaks, strict=True)
            ],
        )
    Console(width=None if sys.stdout.isatty() else 120).print(view)
    return 0


if __name__ == "__main__":
    sys.exit(main())
