"""The Lightning tasks of LEADING: on fixed features, and end to end."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from gtkern import _processes
from gtkern.data.node import NodeData
from gtkern.data.text_graph import TextGraph
from gtkern.methods.leading.bank import MemoryBank
from gtkern.methods.leading.blocks import Block, Blocks
from gtkern.methods.leading.language_model import LanguageModel
from gtkern.methods.leading.lazy import LazyMemory
from gtkern.methods.leading.network import GraphPart, TextGraphNetwork
from gtkern.methods.leading.settings import LeadingSettings
from gtkern.methods.leading.tokens import TokenizedTexts
from gtkern.training import metrics
from gtkern.training.batches import Batch, NodeBatches
from gtkern.training.errors import UserError
from gtkern.training.node import NodeTask
from gtkern.training.task import Task

__all__ = ["EndToEndTask", "FeatureTask", "encoded_rows"]

EVALUATED = 2**32 - 1
"""The epoch whose samples evaluations use: always the same."""

COPY = "copy-"
"""How the name of a copy of the bank begins; its step follows."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def encoded_rows(
    model: LanguageModel,
    tokens: TokenizedTexts,
    nodes: Tensor,
    settings: LeadingSettings,
) -> Tensor:
    """The language model's vectors [n, width] of some nodes, without gradient, in evaluation.

    Several processes share the nodes out, and each is given all rows.
    """
    mine = nodes.cpu().tensor_split(_processes.count())[_processes.rank()]
    rows = torch.empty(mine.numel(), model.width)
    place = torch.empty(tokens.num_nodes, dtype=torch.int64)
    place[mine] = torch.arange(mine.numel())
    encoded = model.encode(
        tokens,
        mine,
        batch_tokens=settings.encoder.encode_tokens or None,
        dtype=torch.bfloat16 if settings.encoder.precision == "bfloat16" else None,
    )
    for done, values in encoded:
        rows[place[done]] = values.float().cpu()
    # a link between GPUs takes nothing else
    device = next(model.parameters()).device
    return _processes.gather_rows(rows.to(device)).to(nodes.device)


class FeatureTask(NodeTask):
    """The graph part on fixed features, all nodes in a step.

    Args:
        network: a GraphPart.
        x: float32 [N, features].
        data: the graph with its labels.
        block: the whole graph.
        settings: of the run.
    """

    def __init__(
        self,
        network: GraphPart,
        x: Tensor,
        data: TextGraph,
        block: Block,
        settings: LeadingSettings,
    ) -> None:
        nodes = NodeData(x, data.y, data.edge_index, data.train_mask, data.val_mask, data.test_mask)
        super().__init__(
            network,
            nodes,
            settings.features,
            metric="accuracy",
            batch_size=x.size(0),
            seed=settings.seed,
        )
        self.block = block

    def to_device(self, device: torch.device) -> None:
        """Move features and graph."""
        super().to_device(device)
        self.block = self.block.to(device)

    def logits(self, batch: Batch) -> Tensor:
        """The network's output for the targets."""
        out: Tensor = self.network(self.x, self.block)
        return out[batch.targets]


class EndToEndTask(Task):
    """Language model and graph part together.

    In a step the targets are encoded with gradient; their neighbours come out of the bank, or are
    encoded with gradient too where there is none ("joint"), or do not exist ("language-model").
    Several processes share the encoding out; each of them has all rows, the whole bank, and does
    the graph part, which is small, for all: a step is that of one process.

    Args:
        network: the language model under its graph part.
        tokens: the texts.
        data: the graph with its labels.
        blocks: of the graph.
        settings: of the run.
        bank: of the neighbours; None: see above.
        lazy: where the solver left off; None: it goes to the tolerance.
    """

    network: TextGraphNetwork

    def __init__(
        self,
        network: TextGraphNetwork,
        tokens: TokenizedTexts,
        data: TextGraph,
        blocks: Blocks,
        settings: LeadingSettings,
        *,
        bank: MemoryBank | None,
        lazy: LazyMemory | None,
    ) -> None:
        super().__init__(network, settings.training, metric="accuracy")
        self.settings = settings
        self.tokens = tokens
        self.y = data.y
        self.blocks = blocks
        self.bank = bank
        self.lazy = lazy
        self.dtype_of_products = DTYPES[settings.encoder.precision]
        self._train_nodes = data.train_mask.nonzero().flatten()
        self._eval_nodes = _some(
            data.val_mask.nonzero().flatten(), settings.training.eval_nodes, settings.seed
        )
        self._step = 0
        self._copy = ""
        self._evaluated: list[tuple[Tensor, Tensor]] = []
        self._seconds = {"refresh": 0.0, "evaluate": 0.0}
        self._refreshed = 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The language model learns at a pace of its own."""
        training = self.settings.training
        return [
            {"params": list(self.network.graph_part.parameters()), "lr": training.lr},
            {
                "params": [p for p in self.network.language_model.parameters() if p.requires_grad],
                "lr": training.encoder_lr,
            },
        ]

    def setup(self, stage: str) -> None:
        """Move the labels to the network's device."""
        self.y = self.y.to(self.trainer.strategy.root_device)

    def batch(self, nodes: Tensor) -> Batch:
        """A batch around training nodes."""
        return self.make(nodes, self.current_epoch)

    def eval_batch(self, nodes: Tensor) -> Batch:
        """The batch around the evaluated nodes: all that the bank has, or sampled neighbours."""
        if self.bank is None:
            return self.make(nodes, EVALUATED)
        kept = torch.arange(self.tokens.num_nodes)
        return self._batch(nodes, self.blocks.around(nodes, kept[self.bank.visited(kept)]))

    def train_dataloader(self) -> NodeBatches:
        """Training nodes."""
        return NodeBatches(
            self._train_nodes,
            self.settings.training.batch_size,
            self.batch,
            seed=self.settings.seed,
            epoch=lambda: self.current_epoch,
        )

    def val_dataloader(self) -> NodeBatches:
        """Validation nodes, all in one."""
        return NodeBatches(self._eval_nodes, self._eval_nodes.numel(), self.eval_batch)

    def on_train_epoch_start(self) -> None:
        """Start the clocks; encode the rows of the bank that are due."""
        super().on_train_epoch_start()
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self._refreshed = 0
        if self.bank is not None:
            self._refresh_epoch(self.bank)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The loss of a batch, the same in every process."""
        block: Block = batch.inputs
        self._step += 1
        step = self._step
        encoded = block.nodes if self.settings.train == "joint" else block.targets
        x = self._encode(encoded)
        if self.bank is not None:
            self.bank.write(block.targets, x.detach(), step=step)
            if block.neighbors.numel():
                self._refresh_step(self.bank, block.neighbors, step)
                x = torch.cat((x, self.bank.read(block.neighbors).to(x.device)))
        start = None if self.lazy is None else self.lazy.start(block, step)
        # dropout of the graph part is the same in every process, and in a run of one
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(self.settings.seed * 1_000_003 + step)
            logits = self.network(x, block, start)[: block.num_labelled]
        loss = metrics.loss(logits, self.y[batch.targets], batch.known)
        # every process has the whole loss, and their mean is wanted
        self.losses.append(loss.detach() / _processes.count())
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Encode the nodes; read the others from the bank, or encode them where there is none."""
        began = time.perf_counter()
        block: Block = batch.inputs
        if self.bank is None:
            x = self._rows(block.nodes)
        else:
            others = self.bank.read(block.neighbors).to(block.nodes.device)
            x = torch.cat((self._rows(block.targets), others))
        logits = self.network(x, block)[: block.num_labelled]
        self._evaluated.append((logits, self.y[batch.targets]))
        self._seconds["evaluate"] += time.perf_counter() - began

    def on_validation_epoch_end(self) -> None:
        """The metric; keep the weights when it is better than ever."""
        logits, truth = (torch.cat(parts) for parts in zip(*self._evaluated, strict=True))
        self._evaluated = []
        self.evaluated(metrics.evaluate(self.metric, logits, truth), None)

    def report(self) -> dict[str, float]:
        """Seconds of refreshing and evaluating, and rows encoded for the bank."""
        row: dict[str, float] = {"steps": len(self.train_dataloader())}
        row |= {f"{name}_seconds": seconds for name, seconds in self._seconds.items()}
        if self.bank is not None:
            row["refreshed"] = self._refreshed
        return row

    def trained_state(self) -> dict[str, Tensor]:
        """The weights that learn: with adapters the language model's own do not."""
        return {
            name: parameter.detach()
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad
        }

    def figures(self) -> dict[str, Any]:
        """What a summary says of the steps and of the bank."""
        rows = self.history
        steps = sum(int(row["steps"]) for row in rows)
        stepping = sum(
            row["seconds"] - row["refresh_seconds"] - row["evaluate_seconds"] for row in rows
        )
        found: dict[str, Any] = {
            "steps": steps,
            "seconds_per_step": stepping / max(1, steps),
            "refresh_seconds": sum(row["refresh_seconds"] for row in rows),
            "evaluate_seconds": sum(row["evaluate_seconds"] for row in rows),
        }
        if self.bank is not None:
            found["refreshed"] = sum(int(row["refreshed"]) for row in rows)
            found["bank"] = self.bank.statistics(self._step)._asdict()
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the bank and where the solver left off."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["leading"] = {
            "step": self._step,
            "bank": None if self.bank is None else self._kept(self.bank),
            "lazy": None if self.lazy is None else self.lazy.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` added.

        Raises:
            UserError: it was of other texts.
        """
        super().on_load_checkpoint(checkpoint)
        try:
            self._take_up(checkpoint["leading"])
        except ValueError as error:
            raise UserError(
                f"cannot resume with other texts or another tokenizer: {error}"
            ) from error

    def _take_up(self, kept: dict[str, Any]) -> None:
        self._step = kept["step"]
        self._copy = f"{COPY}{self._step}"
        if self.bank is not None and self.bank.path is not None:
            self.bank.load(self.bank.path.parent / kept["bank"])
        elif self.bank is not None:
            self.bank.load_state_dict(kept["bank"])
        if self.lazy is not None:
            self.lazy.load_state_dict(kept["lazy"])

    def _kept(self, bank: MemoryBank) -> Any:
        """The bank for a checkpoint; of one in a file the name of a copy beside it."""
        if bank.path is None:
            return bank.state_dict()
        copy = f"{COPY}{self._step}"
        if _processes.rank() == 0:
            # the one before goes with the checkpoint that this one takes the place of
            for old in bank.path.parent.glob(f"{COPY}*"):
                if old.name not in (copy, self._copy):
                    old.unlink()
            bank.save(bank.path.parent / copy)
        self._copy = copy
        return copy

    def make(self, nodes: Tensor, epoch: int) -> Batch:
        """The batch around labelled nodes, with the neighbours of an epoch."""
        if self.settings.train == "language-model":
            none = torch.zeros(2, 0, dtype=torch.int64)
            block = Block(nodes, nodes.numel(), nodes.numel(), none, torch.zeros(0))
        else:
            block = self.blocks.block(nodes, epoch)
        return self._batch(nodes, block)

    def _batch(self, nodes: Tensor, block: Block) -> Batch:
        device = self.y.device
        return Batch(nodes.to(device), nodes.numel(), block.to(device))

    def _encode(self, nodes: Tensor) -> Tensor:
        """Vectors of nodes with gradient; each process encodes a part of them."""
        count = _processes.count()
        mine = nodes.tensor_split(count)[_processes.rank()]
        # every process has its part in the gradient of all weights, were it 0
        x = self.network.encode(
            self.tokens, mine if mine.numel() else nodes[:1], self.dtype_of_products
        )
        return _processes.gather_rows(x[: mine.numel()])

    def _rows(self, nodes: Tensor) -> Tensor:
        return encoded_rows(self.network.language_model, self.tokens, nodes, self.settings)

    def _refresh_epoch(self, bank: MemoryBank) -> None:
        """Encode what the epoch's batches will read and the bank does not have, or not new."""
        epoch, neighbors = self.current_epoch, self.settings.neighbors
        seen = torch.zeros(self.tokens.num_nodes, dtype=torch.bool)
        loader = self.train_dataloader()
        for nodes in loader.split():
            seen[self.blocks.neighbors(nodes, epoch)] = True
        needed = seen.nonzero().flatten()
        renewed = neighbors.refresh == "epoch" and epoch % neighbors.period == 0
        # what a step of the epoch before wrote is new enough
        older_than = len(loader) - 1 if renewed else None
        self._refresh(bank, bank.due(needed, self._step, older_than=older_than), self._step)

    def _refresh_step(self, bank: MemoryBank, neighbors: Tensor, step: int) -> None:
        settings = self.settings.neighbors
        if settings.refresh == "age":
            due = bank.due(neighbors, step, older_than=settings.period - 1)
        elif settings.refresh == "rolling":
            due = bank.due(neighbors, step, oldest=settings.period)
        else:
            return
        self._refresh(bank, due, step)

    def _refresh(self, bank: MemoryBank, nodes: Tensor, step: int) -> None:
        if not nodes.numel():
            return
        began = time.perf_counter()
        bank.write(nodes, self._rows(nodes), step=step)
        self._refreshed += nodes.numel()
        self._seconds["refresh"] += time.perf_counter() - began


def _some(nodes: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the nodes, drawn at random; all for 0 or where there are no more."""
    if count == 0 or count >= nodes.numel():
        return nodes
    generator = torch.Generator().manual_seed(seed)
    return nodes[torch.randperm(nodes.numel(), generator=generator)[:count]].sort().values
