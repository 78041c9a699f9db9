"""A language model as the encoder of the texts of a graph."""

from __future__ import annotations

import contextlib
import copy
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gtkern.methods.leading._libraries import import_peft, import_transformers
from gtkern.methods.leading.packed import can_pack, encode_packed, use_packed_attention
from gtkern.methods.leading.tokens import TokenizedTexts, tokenizer_digest

__all__ = ["POOLINGS", "LanguageModel"]

POOLINGS = ("mean", "first")
"""How the tokens of a text become one row: their mean, or the first one."""

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


class LanguageModel(nn.Module):
    """Texts to rows of `width` numbers.

    Made by `from_path`, which reads a pretrained encoder, or `small`, which draws a small one.

    Args:
        encoder: a Hugging Face model; its last hidden state is read.
        tokenizer: its tokenizer.
        max_tokens: of a text, at most.
        pooling: one of POOLINGS.
        packed: the texts of a batch go through one after the other, attention by
            `gtkern.ops.ragged_attention`, instead of side by side and filled up. The rows are the
            same, save for rounding and for what dropout draws. None: where the encoder allows it.

    Attributes:
        width: of a row.
        tokenizer, max_tokens, pooling, packed: see above.

    Raises:
        ValueError: an unknown pooling, or packed for a model whose attention cannot be chosen.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        *,
        max_tokens: int,
        pooling: str = "mean",
        packed: bool | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        config: Any = encoder.config
        # its weights would have no gradient: rows come from the last hidden state
        if isinstance(getattr(encoder, "pooler", None), nn.Module):
            encoder.register_module("pooler", None)
        if packed is None:
            packed = can_pack(encoder)
        if packed:
            use_packed_attention(encoder)
        # what was read comes in evaluation
        self.encoder = encoder.train()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.pooling = pooling
        self.packed = packed
        self.width = int(config.hidden_size)
        self._tokenizer_digest = tokenizer_digest(tokenizer)

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str],
        *,
        lora_rank: int = 0,
        gradient_checkpointing: bool = False,
        pooling: str = "mean",
        packed: bool | None = None,
    ) -> LanguageModel:
        """Read a pretrained encoder and its tokenizer; nothing is downloaded.

        Args:
            path: a folder as `save_pretrained` of Hugging Face writes it: config.json, weights,
                tokenizer.
            lora_rank: rank of adapters beside the attention's weights, which alone are trained
                then; 0: all weights are trained.
            gradient_checkpointing: keep only the layers' inputs for backward, and compute the rest
                a second time.
            pooling, packed: see the class.

        Raises:
            FileNotFoundError: no such folder. ValueError: it does not hold an encoder; names what
                is missing, or the weights that are; no layers are known to adapt; packed for a
                model whose attention cannot be chosen. ImportError: transformers or peft is
                missing; says which extra has it.

        Reference: Hu et al. 2022 (LoRA), section 4.
        """
        folder = pathlib.Path(path).expanduser()
        _check_folder(folder)
        if lora_rank < 0:
            raise ValueError(f"lora_rank must be at least 0, got {lora_rank}")
        transformers = import_transformers()
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            if config.is_encoder_decoder:
                raise ValueError(
                    f"{folder} must hold an encoder, got {config.model_type}, which also decodes"
                )
            encoder, report = transformers.AutoModel.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise ValueError(
                f"{folder} must hold all weights of {config.model_type}, got none for "
                f"{len(missing)}, the first {missing[0]}"
            )
        if gradient_checkpointing:
            # its name until transformers 5 was gradient_checkpointing_enable
            enable = getattr(encoder, "activation_checkpointing_enable", None)
            (enable or encoder.gradient_checkpointing_enable)({"use_reentrant": False})
        if lora_rank:
            encoder = _with_adapters(encoder, lora_rank)
        return cls(
            encoder,
            tokenizer,
            max_tokens=min(_positions(encoder), int(tokenizer.model_max_length)),
            pooling=pooling,
            packed=packed,
        )

    @classmethod
    def small(
        cls,
        tokenizer: Any,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        *,
        max_tokens: int = 128,
        dropout: float = 0.1,
        pooling: str = "mean",
        packed: bool | None = None,
    ) -> LanguageModel:
        """Draw a small BERT by torch's random numbers.

        Args:
            tokenizer: for example of `train_tokenizer`.
            width: of a row; divisible by `heads`.
            layers: of the encoder.
            heads: of its attention.
            max_tokens: of a text, at most.
            dropout: of hidden values and of attention.
            pooling, packed: see the class.

        Raises:
            ImportError: transformers is missing; says which extra has it.
        """
        transformers = import_transformers()
        if width % heads:
            raise ValueError(f"width must be divisible by heads ({heads}), got {width}")
        config = transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=max_tokens,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pad_token_id=tokenizer.pad_token_id,
        )
        encoder = transformers.BertModel(config, add_pooling_layer=False)
        return cls(encoder, tokenizer, max_tokens=max_tokens, pooling=pooling, packed=packed)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the encoder and its tokenizer as Hugging Face does; `from_path` reads them.

        Adapters are added to the weights that they adapt.
        """
        transformers = import_transformers()
        encoder: Any = self.encoder
        if any(".lora_" in name for name in encoder.state_dict()):
            encoder = _merged(encoder)
        with _quiet(transformers):
            encoder.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return (
            f"width={self.width}, max_tokens={self.max_tokens}, pooling={self.pooling!r}, "
            f"packed={self.packed}"
        )

    def forward(self, tokens: TokenizedTexts, nodes: Tensor) -> Tensor:
        """Encode the texts of some nodes; a text that several of them have is encoded once.

        Args:
            tokens: made with the model's tokenizer.
            nodes: int64 [b], on any device.

        Returns:
            float32 [b, width], on the model's device.

        Raises:
            TypeError: nodes that are not int64. IndexError: a node that is not there. ValueError:
                tokens of another tokenizer, longer ones than the model takes, or no node.
        """
        nodes = self._check(tokens, nodes)
        rows, place = tokens.text_of[nodes].unique(return_inverse=True)
        encoded = self._rows(tokens, rows)
        return encoded.index_select(0, place.to(encoded.device))

    def encode(
        self,
        tokens: TokenizedTexts,
        nodes: Tensor,
        *,
        batch_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Encode the texts of many nodes without gradient and without dropout.

        Every different text is encoded once, together with others of about its length, the longest
        first. The modes of the model are between two results what they were before.

        Args:
            tokens: made with the model's tokenizer.
            nodes: int64 [m]; one that is there twice counts once.
            batch_tokens: at most so many tokens at a time, the filling included; one text goes
                through whatever its length. Default: 2,048 on a CPU, where larger batches were
                slower, and 16,384 elsewhere.
            dtype: torch.bfloat16: matrix products in it (autocast); None: as the weights are.
            progress: called with the number of different texts done, and of all.

        Yields:
            Nodes, int64 [k], and their rows, float32 [k, width], on the model's device; every node
            once.

        Raises:
            TypeError, IndexError, ValueError: as for `forward`, save that there may be no node;
                batch_tokens below 1; or another dtype.
        """
        nodes = self._check(tokens, nodes)
        if batch_tokens is None:
            on_cpu = next(self.parameters()).device.type == "cpu"
            batch_tokens = 2048 if on_cpu else 16384
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
        if dtype not in (None, torch.bfloat16):
            raise ValueError(f"dtype must be None or torch.bfloat16, got {dtype}")
        return self._encode(tokens, nodes.unique(), batch_tokens, dtype, progress)

    def _encode(
        self,
        tokens: TokenizedTexts,
        nodes: Tensor,
        batch_tokens: int,
        dtype: torch.dtype | None,
        progress: Callable[[int, int], None] | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        rows, place, count = tokens.text_of[nodes].unique(return_inverse=True, return_counts=True)
        # the nodes of each row, one row after the other
        nodes = nodes[place.argsort(stable=True)]
        start = count.cumsum(0) - count
        order = tokens.lengths[rows].argsort(descending=True, stable=True)
        done = 0
        while done < order.numel():
            longest = int(tokens.lengths[rows[order[done]]])
            batch = order[done : done + max(1, batch_tokens // longest)]
            with torch.no_grad(), self._evaluating(), self._autocast(dtype):
                encoded = self._rows(tokens, rows[batch])
            repeats = count[batch]
            own = torch.repeat_interleave(torch.arange(batch.numel()), repeats)
            first = torch.repeat_interleave(repeats.cumsum(0) - repeats, repeats)
            members = start[batch][own] + torch.arange(own.numel()) - first
            done += batch.numel()
            if progress is not None:
                progress(done, order.numel())
            yield nodes[members], encoded.index_select(0, own.to(encoded.device))

    def _rows(self, tokens: TokenizedTexts, rows: Tensor) -> Tensor:
        """Different texts, [b, width]."""
        device = next(self.parameters()).device
        if self.packed:
            flat_ids, ptr = tokens.pack(rows)
            flat = encode_packed(
                self.encoder, flat_ids.to(device), ptr, _first_position(self.encoder)
            ).float()
            ptr = ptr.to(device)
            if self.pooling == "first":
                return flat.index_select(0, ptr[:-1])
            return torch.segment_reduce(flat, "mean", offsets=ptr)
        input_ids, mask = (value.to(device) for value in tokens.pad(rows))
        hidden = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "first":
            first: Tensor = hidden[:, 0]
            return first
        weight = mask.to(hidden.dtype)
        mean: Tensor = torch.einsum("btc,bt->bc", hidden, weight / weight.sum(1, keepdim=True))
        return mean

    def _check(self, tokens: TokenizedTexts, nodes: Tensor) -> Tensor:
        """The nodes, on the CPU, where the tokens are."""
        if tokens.tokenizer != self._tokenizer_digest:
            raise ValueError(
                "tokens must be made with the model's own tokenizer, got those of another: "
                "tokenize(texts, model.tokenizer, ...)"
            )
        if tokens.max_tokens > self.max_tokens and int(tokens.lengths.max()) > self.max_tokens:
            raise ValueError(
                f"tokens must be at most {self.max_tokens} of a text for this model, got "
                f"{int(tokens.lengths.max())}: tokenize(..., max_tokens={self.max_tokens})"
            )
        if nodes.dtype != torch.int64:
            raise TypeError(f"nodes must be int64, got {nodes.dtype}")
        nodes = nodes.cpu()
        if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= tokens.num_nodes):
            raise IndexError(
                f"nodes must be in 0 .. {tokens.num_nodes - 1}, got {int(nodes.min())} .. "
                f"{int(nodes.max())}"
            )
        return nodes

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        before = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in before:
                module.training = True

    def _autocast(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
        if dtype is None:
            return contextlib.nullcontext()
        device = next(self.parameters()).device
        cast: contextlib.AbstractContextManager[None] = torch.autocast(device.type, dtype)
        return cast


def _check_folder(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"expected the folder {folder} of a language model, got none")
    missing = [
        what
        for what, files in (
            ("config.json", ("config.json",)),
            (f"weights ({', '.join(_WEIGHTS)})", _WEIGHTS),
            (f"a tokenizer ({', '.join(_TOKENIZERS)})", _TOKENIZERS),
        )
        if not any((folder / file).is_file() for file in files)
    ]
    if missing:
        there = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise ValueError(
            f"{folder} must hold a language model, got no {'; no '.join(missing)}; there is: "
            f"{there}"
        )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and reports of the library: what they tell is checked here."""
    logging = transformers.utils.logging
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _first_position(encoder: Any) -> int:
    """The number of the first position: RoBERTa counts from the one after the padding's."""
    position = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(position, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def _positions(encoder: Any) -> int:
    """How many tokens the encoder has positions for."""
    return int(encoder.config.max_position_embeddings) - _first_position(encoder)


def _with_adapters(encoder: Any, rank: int) -> nn.Module:
    peft = import_peft()
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank)
    try:
        adapted: nn.Module = peft.inject_adapter_in_model(config, encoder)
    except ValueError as error:
        raise ValueError(
            f"lora_rank above 0: peft knows no layers of {encoder.config.model_type} to adapt"
        ) from error
    return adapted


def _merged(encoder: nn.Module) -> nn.Module:
    """A copy with every adapted layer as one of the kind it was."""
    import_peft()
    from peft.tuners.tuners_utils import BaseTunerLayer

    encoder = copy.deepcopy(encoder)
    adapted = [(name, m) for name, m in encoder.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, module in adapted:
        layer: Any = module
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, layer.get_base_layer())
    return encoder
