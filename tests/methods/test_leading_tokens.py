"""Texts in tokens: each once, kept in files, padded and packed."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gtkern.data import word_graph
from gtkern.methods.leading.tokens import tokenize, tokenizer_digest, train_tokenizer

TEXTS = ["a cat sat", "the dog", "a cat sat", "a dog and the cat sat", "the dog"]


def plain() -> PreTrainedTokenizerFast:
    """Words to numbers, nothing added before or after."""
    words = {"[PAD]": 9, "a": 1, "cat": 2, "sat": 3, "the": 4, "dog": 5, "and": 6}
    backend = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


def test_a_text_of_several_nodes_is_kept_once() -> None:
    tokens = tokenize(TEXTS, plain(), max_tokens=8)
    assert (tokens.num_nodes, tokens.num_texts) == (5, 3)
    assert tokens.text_of.tolist() == [0, 1, 0, 2, 1]
    assert tokens.lengths.tolist() == [3, 2, 6]


def test_pad_fills_up_to_the_longest_and_says_where() -> None:
    tokens = tokenize(TEXTS, plain(), max_tokens=8)
    ids, mask = tokens.pad(torch.tensor([1, 0, 1]))
    assert ids.tolist() == [[4, 5, 9], [1, 2, 3], [4, 5, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]
    assert ids.dtype == mask.dtype == torch.int64
    packed, ptr = tokens.pack(torch.tensor([1, 0, 1]))
    assert packed.tolist() == [4, 5, 1, 2, 3, 4, 5]
    assert ptr.tolist() == [0, 2, 5, 7]
    with pytest.raises(IndexError, match=r"rows must be in 0 .. 2, got 0 .. 3"):
        tokens.pad(torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"rows must have shape \[b\], not empty, got \[0\]"):
        tokens.pad(torch.empty(0, dtype=torch.int64))


def test_long_texts_are_cut() -> None:
    tokens = tokenize(TEXTS, plain(), max_tokens=3)
    assert tokens.lengths.tolist() == [3, 2, 3]


def test_a_text_without_tokens_is_told() -> None:
    with pytest.raises(ValueError, match="must give a token, got none of node 2's"):
        tokenize(["a", "dog", " \n", "cat"], plain(), max_tokens=8)
    with pytest.raises(ValueError, match="at least one node, got none"):
        tokenize([], plain(), max_tokens=8)
    with pytest.raises(ValueError, match="max_tokens must be at least 3, got 2"):
        tokenize(TEXTS, plain(), max_tokens=2)


def test_the_second_time_tokens_come_from_the_folder(tmp_path: pathlib.Path) -> None:
    calls: list[tuple[int, int]] = []

    def note(done: int, of: int) -> None:
        calls.append((done, of))

    first = tokenize(TEXTS, plain(), max_tokens=8, folder=tmp_path, progress=note)
    assert calls == [(3, 3)]
    second = tokenize(TEXTS, plain(), max_tokens=8, folder=tmp_path, progress=note)
    assert calls == [(3, 3)]
    everything = torch.arange(3)
    assert torch.equal(first.pad(everything)[0], second.pad(everything)[0])
    assert second.digest == first.digest
    # other texts, another limit or another tokenizer are kept apart
    for texts, limit in ((TEXTS[::-1], 8), (TEXTS, 7)):
        other = tokenize(texts, plain(), max_tokens=limit, folder=tmp_path)
        assert other.digest != first.digest
    changed = plain()
    changed.add_tokens("bird")
    assert tokenizer_digest(changed) != tokenizer_digest(plain())
    assert tokenize(TEXTS, changed, max_tokens=8, folder=tmp_path).digest != first.digest
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["bytes", "cut", "gone", "foreign", "about"])
def test_damaged_files_are_made_anew(tmp_path: pathlib.Path, damage: str) -> None:
    first = tokenize(TEXTS, plain(), max_tokens=8, folder=tmp_path)
    expected = first.pack(torch.arange(3))[0].tolist()
    (place,) = tmp_path.iterdir()
    ids = place / "ids.npy"
    content = ids.read_bytes()
    ids.unlink()
    if damage == "bytes":
        ids.write_bytes(content[:-4] + b"\x01\x00\x00\x00")
    elif damage == "cut":
        ids.write_bytes(content[:-2])
    elif damage == "foreign":
        np.save(ids, np.arange(11, dtype=np.int32))
    elif damage == "about":
        ids.write_bytes(content)
        (place / "about.json").write_text("{")
    with pytest.warns(UserWarning, match="not what was written, and are made anew"):
        again = tokenize(TEXTS, plain(), max_tokens=8, folder=tmp_path)
    assert again.pack(torch.arange(3))[0].tolist() == expected
    # whole again
    calls: list[int] = []
    tokenize(
        TEXTS, plain(), max_tokens=8, folder=tmp_path, progress=lambda done, _: calls.append(done)
    )
    assert not calls


def test_the_digest_does_not_follow_the_last_call() -> None:
    tokenizer = plain()
    before = tokenizer_digest(tokenizer)
    tokenizer(["a cat", "dog"], truncation=True, max_length=1, padding=True)
    assert tokenizer_digest(tokenizer) == before


def test_a_trained_tokenizer_knows_the_words() -> None:
    texts = word_graph(0, num_nodes=200).texts
    tokenizer = train_tokenizer(texts, vocabulary=900, max_tokens=32)
    again = train_tokenizer(texts, vocabulary=900, max_tokens=32)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(again)
    assert len(tokenizer) <= 900
    ids = tokenizer(texts[0].upper())["input_ids"]
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    assert tokenizer.decode(ids[1:-1]).strip() == texts[0]
    assert tokenizer.decode(tokenizer("Naïve ☃")["input_ids"][1:-1]).strip() == "naïve ☃"
    assert tokenizer.model_max_length == 32
    tokens = tokenize(texts, tokenizer, max_tokens=32)
    assert 5 < float(tokens.lengths.double().mean()) < 32
    with pytest.raises(ValueError, match="vocabulary must be at least 261, got 260"):
        train_tokenizer(texts, vocabulary=260)


def test_missing_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'gtkern\[language\]'"):
        train_tokenizer(["a"])
