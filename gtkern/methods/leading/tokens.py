"""The texts of a graph as numbers, made once and kept in memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import uuid
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtkern.methods.leading._libraries import import_transformers

__all__ = ["TokenizedTexts", "tokenize", "tokenizer_digest", "train_tokenizer"]

_FORMAT = 1
"""Grows when the same texts give other files."""

_CHUNK = 1024
_ARRAYS = ("ids", "ptr", "text_of")


class TokenizedTexts:
    """Texts of the N nodes of a graph in tokens; U different ones are kept, each once.

    Made by `tokenize`.

    Attributes:
        text_of: int64 [N], the row of each node's text among the different ones.
        lengths: int64 [U], tokens of each text.
        max_tokens: no text is longer.
        tokenizer: digest of the tokenizer.
        digest: of texts, tokenizer and max_tokens: what is computed from the tokens alone is the
            same where it is the same.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        *,
        max_tokens: int,
        pad_id: int,
        tokenizer: str,
        digest: str,
    ) -> None:
        self._ids, self._ptr = arrays["ids"], np.asarray(arrays["ptr"])
        self._pad_id = pad_id
        # copied, for a memory map cannot be written to, and a tensor should
        self.text_of = torch.from_numpy(np.array(arrays["text_of"]))
        self.lengths = torch.from_numpy(np.diff(self._ptr))
        self.max_tokens = max_tokens
        self.tokenizer = tokenizer
        self.digest = digest

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.text_of.numel()

    @property
    def num_texts(self) -> int:
        """U."""
        return self.lengths.numel()

    def __repr__(self) -> str:
        return (
            f"TokenizedTexts({self.num_nodes} nodes, {self.num_texts} texts, "
            f"{int(self._ptr[-1])} tokens)"
        )

    def pad(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Texts side by side, the shorter ones filled up.

        Args:
            rows: int64 [b], rows of the different texts (`text_of[nodes]`), at least one.

        Returns:
            The tokens, int64 [b, T] with T of the longest one, and a mask, int64 [b, T], 1 where
            there is a token.

        Raises:
            IndexError: a row that is not there. ValueError: no row.
        """
        chosen = self._chosen(rows)
        lengths = self._ptr[chosen + 1] - self._ptr[chosen]
        width = int(lengths.max())
        input_ids = np.full((chosen.size, width), self._pad_id, dtype=np.int64)
        for at, (row, length) in enumerate(zip(chosen.tolist(), lengths.tolist(), strict=True)):
            begin = self._ptr[row]
            input_ids[at, :length] = self._ids[begin : begin + length]
        mask = np.arange(width) < lengths[:, None]
        return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64))

    def pack(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Texts one after the other.

        Args:
            rows: as for `pad`.

        Returns:
            The tokens, int64 [T] with T of all of them, and where each begins, int64 [b + 1].

        Raises:
            IndexError, ValueError: as for `pad`.
        """
        chosen = self._chosen(rows)
        bounds = zip(self._ptr[chosen].tolist(), self._ptr[chosen + 1].tolist(), strict=True)
        ids = np.concatenate([self._ids[begin:end] for begin, end in bounds]).astype(np.int64)
        ptr = np.zeros(chosen.size + 1, dtype=np.int64)
        np.cumsum(self._ptr[chosen + 1] - self._ptr[chosen], out=ptr[1:])
        return torch.from_numpy(ids), torch.from_numpy(ptr)

    def _chosen(self, rows: Tensor) -> np.ndarray:
        chosen: np.ndarray = rows.detach().cpu().numpy()
        if chosen.ndim != 1 or not chosen.size:
            raise ValueError(f"rows must have shape [b], not empty, got {list(rows.shape)}")
        if chosen.min() < 0 or chosen.max() >= self.num_texts:
            raise IndexError(
                f"rows must be in 0 .. {self.num_texts - 1}, got {chosen.min()} .. {chosen.max()}"
            )
        return chosen


def tokenize(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    max_tokens: int,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenizedTexts:
    """Turn the texts of a graph into tokens, each different text once.

    Args:
        texts: of the nodes.
        tokenizer: of Hugging Face; adds what its model expects before and after a text.
        max_tokens: longer texts are cut, what is added included; at least 3.
        folder: keeps the tokens in a folder of its own in there, `tokens-DIGEST`, and takes them
            from there the next time. Files that are not what was written are made anew, with a
            warning.
        progress: called with the number of different texts done, and of all.

    Raises:
        ValueError: no texts, max_tokens below 3, or a text that gives no token; names its node.
    """
    if not texts:
        raise ValueError("texts must have at least one node, got none")
    if max_tokens < 3:
        raise ValueError(f"max_tokens must be at least 3, got {max_tokens}")
    own = tokenizer_digest(tokenizer)
    row_of: dict[str, int] = {}
    text_of = np.array([row_of.setdefault(text, len(row_of)) for text in texts], dtype=np.int64)
    different = list(row_of)
    digest = _digest(different, text_of, own, max_tokens)
    place = None if folder is None else pathlib.Path(folder) / f"tokens-{digest[:32]}"
    arrays = None if place is None else _kept(place, digest)
    if arrays is None:
        arrays = {
            "text_of": text_of,
            **_tokens(different, text_of, tokenizer, max_tokens, progress),
        }
        if place is not None:
            _keep(place, digest, arrays)
            arrays = _mapped(place)
    pad_id = tokenizer.pad_token_id
    return TokenizedTexts(
        arrays,
        max_tokens=max_tokens,
        pad_id=0 if pad_id is None else int(pad_id),
        tokenizer=own,
        digest=digest,
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """What tells a tokenizer from others: the same text gives the same tokens where it is the same.

    Args:
        tokenizer: of Hugging Face.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        about = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        about = json.loads(backend.to_str())
        # they are what the last call asked for
        about.pop("truncation", None)
        about.pop("padding", None)
    about["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def train_tokenizer(texts: Sequence[str], vocabulary: int = 4096, *, max_tokens: int = 128) -> Any:
    """Make a tokenizer of the frequent words and parts of words of some texts, in lower case.

    Byte pair encoding: no character is unknown to it, and the same texts give the same tokenizer
    (which WordPiece's trainer does not promise).

    Args:
        texts: to learn from.
        vocabulary: tokens at most, the 256 bytes and 5 special ones included; fewer where the texts
            give no more.
        max_tokens: that a model of it takes.

    Returns:
        A PreTrainedTokenizerFast that puts [CLS] before and [SEP] after a text.

    Raises:
        ValueError: vocabulary below 261. ImportError: transformers is missing; says which extra has
            it.

    Reference: Sennrich et al. 2016, "Neural machine translation of rare words with subword units",
    section 3.2.
    """
    transformers = import_transformers()
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary < len(special) + len(alphabet):
        raise ValueError(
            f"vocabulary must be at least {len(special) + len(alphabet)}, got {vocabulary}"
        )
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_tokens,
    )


def _tokens(
    texts: list[str],
    text_of: np.ndarray,
    tokenizer: Any,
    max_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, np.ndarray]:
    """The tokens of all texts one after the other, where each begins, and whose it is."""
    found: list[np.ndarray] = []
    lengths = np.zeros(len(texts) + 1, dtype=np.int64)
    for begin in range(0, len(texts), _CHUNK):
        chunk = texts[begin : begin + _CHUNK]
        rows = tokenizer(
            chunk,
            truncation=True,
            max_length=max_tokens,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        sizes = [len(row) for row in rows]
        if 0 in sizes:
            node = int((text_of == begin + sizes.index(0)).argmax())
            raise ValueError(f"every text must give a token, got none of node {node}'s")
        lengths[begin + 1 : begin + 1 + len(chunk)] = sizes
        found.append(np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]))
        if progress is not None:
            progress(begin + len(chunk), len(texts))
    return {"ids": np.concatenate(found), "ptr": np.cumsum(lengths), "text_of": text_of}


def _digest(texts: list[str], text_of: np.ndarray, tokenizer: str, max_tokens: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {tokenizer} {max_tokens} {len(texts)}\n".encode())
    digest.update(text_of.tobytes())
    for text in texts:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _checksum(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _keep(place: pathlib.Path, digest: str, arrays: dict[str, np.ndarray]) -> None:
    """Write each file beside its place, then rename; the one that vouches for them comes last."""
    place.mkdir(parents=True, exist_ok=True)
    unfinished = place / f".{uuid.uuid4().hex}.npy"
    about: dict[str, Any] = {"digest": digest, "checksums": {}}
    try:
        for name in _ARRAYS:
            np.save(unfinished, arrays[name])
            about["checksums"][name] = _checksum(unfinished)
            os.replace(unfinished, place / f"{name}.npy")
        unfinished.write_text(json.dumps(about))
        os.replace(unfinished, place / "about.json")
    finally:
        unfinished.unlink(missing_ok=True)


def _kept(place: pathlib.Path, digest: str) -> dict[str, np.ndarray] | None:
    """What was kept; None where there is nothing, or not what was written."""
    if not (place / "about.json").is_file():
        return None
    try:
        about = json.loads((place / "about.json").read_text())
        checksums = {name: _checksum(place / f"{name}.npy") for name in _ARRAYS}
        if about == {"digest": digest, "checksums": checksums}:
            return _mapped(place)
    except (OSError, ValueError):
        pass
    warnings.warn(f"{place}: the files are not what was written, and are made anew", stacklevel=3)
    return None


def _mapped(place: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
