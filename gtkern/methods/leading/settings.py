"""The settings of LEADING; light to import, for mistakes in them should show at once."""

from __future__ import annotations

from dataclasses import dataclass

from gtkern.training.optimization import Optimization
from gtkern.training.settings import setting

__all__ = [
    "MODES",
    "EncoderSettings",
    "EndToEnd",
    "FeatureTraining",
    "FileSettings",
    "LeadingSettings",
    "NeighborSettings",
    "PropagationSettings",
    "TextSettings",
]

MODES = ("leading", "joint", "language-model", "cascaded", "tfidf")
"""What is trained: the language model and the graph part, neighbours out of a memory bank; the
same, neighbours with gradient; the language model and a head without the graph; the graph part on
what the frozen language model says; the graph part on TF-IDF."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Which nodes are trained on; see gtkern.data.load_text_graph.

    Attributes:
        split: "given" with the data, or "public", that of Planetoid.
        labels_per_class: training nodes kept of each class; 0: all.
        label_share: share of the training nodes that is kept; 0: all.
    """

    split: str = setting("given", choices=("given", "public"))
    labels_per_class: int = setting(0, low=0)
    label_share: float = setting(0.0, low=0, high=1)

    def __post_init__(self) -> None:
        if self.labels_per_class and self.label_share:
            raise ValueError(
                "labels_per_class and label_share exclude each other, got "
                f"{self.labels_per_class} and {self.label_share}"
            )


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """The user's own tables, of the data set "files"; see gtkern.data.read_text_graph.

    Attributes:
        nodes, edges: paths. id, text, label, split: columns of the nodes.
    """

    nodes: str = ""
    edges: str = ""
    id: str = "id"
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    split: str = "split"


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The language model.

    Attributes:
        path: folder of a Hugging Face encoder; empty: a small one with random weights.
        max_tokens: of a text; what is behind them, or behind the most that the model takes, is not
            read.
        pooling: "mean" of the tokens' vectors, or the "first" token's.
        lora_rank: of the adapters that are trained in place of the weights; 0: the weights.
        checkpointing: compute activations again in backward, which takes time and saves memory.
        precision: of the products, "float32" or "bfloat16".
        packed: texts go through one after the other, not side by side and filled up, where the
            language model allows it; see LanguageModel.
        encode_tokens: in a batch without gradient; 0: as many as suit the device.
    """

    path: str = ""
    max_tokens: int = setting(256, low=2)
    pooling: str = setting("mean", choices=("mean", "first"))
    lora_rank: int = setting(0, low=0)
    checkpointing: bool = False
    precision: str = setting("float32", choices=("float32", "bfloat16"))
    packed: bool = True
    encode_tokens: int = setting(0, low=0)

    def __post_init__(self) -> None:
        if not self.path and (self.lora_rank or self.checkpointing):
            raise ValueError(
                "lora_rank and checkpointing are for a language model in a folder (path, or --lm), "
                f"got {self.lora_rank} and {self.checkpointing} without one"
            )


@dataclass(frozen=True, kw_only=True)
class PropagationSettings:
    """The graph part.

    Attributes:
        kind: "implicit": the fixed point of Z = (1 - alpha) A Z + alpha X; "gcn", "gat": a layer of
            PyG's GCNConv or GATConv; "none".
        width: C, of X and Z.
        alpha: see kind.
        sweeps: K of a training step on a batch, which starts where the nodes were left the last
            time; 0: to the tolerance. Evaluation goes to the tolerance.
        beta, theta: share of X in the start of Z, and of the incoming gradient in that of the
            adjoint; see gtkern.ops.propagate.
        tol: relative residual at which Z is found.
        dropout: of X's inputs and of Z.
    """

    kind: str = setting("implicit", choices=("implicit", "gcn", "gat", "none"))
    width: int = setting(128, low=1)
    alpha: float = setting(0.1, above=0, below=1)
    sweeps: int = setting(2, low=0)
    beta: float = setting(0.5, low=0, high=1)
    theta: float = setting(0.5, low=0, high=1)
    tol: float = setting(1e-5, above=0, below=1)
    dropout: float = setting(0.5, low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class NeighborSettings:
    """What a batch sees besides its targets.

    Attributes:
        fanout: neighbours sampled for each node; 0: all.
        hops: how often.
        refresh: which rows of the bank are encoded anew. "epoch": at the start of every `period`-th
            epoch, those that nothing wrote in the epoch before; "rolling": in every step the
            `period` oldest rows of its neighbours; "age": in every step those of its neighbours
            written `period` steps ago or more; "never": none but those that nothing ever wrote.
        period: see refresh.
        bank: numbers of the memory bank, "float16", "bfloat16" or "float32".
        mapped: the bank is a file in the run's folder, and may be larger than memory.
    """

    fanout: int = setting(10, low=0)
    hops: int = setting(1, low=1)
    refresh: str = setting("epoch", choices=("epoch", "rolling", "age", "never"))
    period: int = setting(1, low=1)
    bank: str = setting("float16", choices=("float16", "bfloat16", "float32"))
    mapped: bool = False


@dataclass(frozen=True, kw_only=True)
class FeatureTraining(Optimization):
    """The graph part, or the head alone, on fixed features, all nodes in a step."""


@dataclass(frozen=True, kw_only=True)
class EndToEnd(Optimization):
    """Everything together.

    Attributes:
        encoder_lr: peak learning rate of the language model; `lr` is that of the graph part.
        batch_size: labelled nodes in a step, of all processes together.
        unlabelled: nodes in a step besides, neighbours of the labelled ones, that are encoded with
            gradient too.
        accumulate: steps whose gradients make one update.
        eval_nodes: validation nodes that are encoded in an evaluation; 0: all.
    """

    encoder_lr: float = setting(2e-5, above=0)
    batch_size: int = setting(16, low=1)
    unlabelled: int = setting(0, low=0)
    accumulate: int = setting(1, low=1)
    eval_nodes: int = setting(0, low=0)


@dataclass(frozen=True, kw_only=True)
class LeadingSettings:
    """Everything that decides a run, but for the machine.

    Attributes:
        dataset: name of the data set.
        train: one of MODES.
        seed: of everything random. data_seed: of generated data and of the labels that are kept.
        files, text, encoder, propagation, neighbors: see there.
        features: training on what the frozen language model says. It is all that "cascaded" and
            "tfidf" do; the others begin with it, so that the language model never gets the gradient
            of a head that knows nothing (linear probing, then fine-tuning: Kumar et al. 2022,
            "Fine-tuning can distort pretrained features and underperform out-of-distribution").
        warm_start: False: the others do not begin with it.
        training: of everything together.
        refit: whether they end with it too, on what the tuned language model says of every node:
            in training neighbours' rows were of earlier steps.
    """

    dataset: str = setting()
    train: str = setting("leading", choices=MODES)
    seed: int = setting(0, low=0, high=2**31 - 1)
    data_seed: int = setting(0, low=0, high=2**31 - 1)
    files: FileSettings = FileSettings()
    text: TextSettings = TextSettings()
    encoder: EncoderSettings = EncoderSettings()
    propagation: PropagationSettings = PropagationSettings()
    neighbors: NeighborSettings = NeighborSettings()
    features: FeatureTraining
    warm_start: bool = True
    training: EndToEnd
    refit: bool = True

    def __post_init__(self) -> None:
        if (self.dataset == "files") != bool(self.files.nodes and self.files.edges):
            raise ValueError(
                "files.nodes and files.edges are both needed by the data set files, and by no "
                f"other, got {self.files.nodes!r} and {self.files.edges!r} with {self.dataset}"
            )
