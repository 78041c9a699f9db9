"""Language models over tokens: pooling, duplicates, batches by length, adapters, folders."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import pytest
import torch
import transformers

from gtkern.methods.leading.language_model import LanguageModel
from gtkern.methods.leading.tokens import TokenizedTexts, tokenize, train_tokenizer

TEXTS = [
    "graphs of words",
    "a longer text about graphs and their words and nothing else",
    "graphs of words",
    "words",
    "kernels and graphs of many kernels",
    "words",
    "the last one",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, vocabulary=300, max_tokens=16)


@pytest.fixture(scope="module")
def tokens(tokenizer: Any) -> TokenizedTexts:
    return tokenize(TEXTS, tokenizer, max_tokens=16)


def small(tokenizer: Any, **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel.small(tokenizer, 16, 2, 2, max_tokens=16, **options)


def rows_of(
    model: LanguageModel, tokens: TokenizedTexts, nodes: torch.Tensor, **options: Any
) -> torch.Tensor:
    """What `encode` yields, in the order of the nodes."""
    found = torch.full((tokens.num_nodes, model.width), torch.nan)
    for some, rows in model.encode(tokens, nodes, **options):
        assert bool(found[some].isnan().all()), "a node came twice"
        found[some] = rows.float()
    return found[nodes]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_row_is_that_of_the_text_alone(
    tokenizer: Any, tokens: TokenizedTexts, pooling: str, packed: bool
) -> None:
    model = small(tokenizer, pooling=pooling, packed=packed).eval()
    plain = small(tokenizer, packed=False).eval().encoder
    found = model(tokens, torch.arange(7))
    assert found.dtype == torch.float32
    for node, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=16)["input_ids"]])
        hidden = plain(input_ids=ids).last_hidden_state[0]
        alone = hidden.mean(0) if pooling == "mean" else hidden[0]
        torch.testing.assert_close(found[node], alone, atol=1e-5, rtol=1e-5)


def test_a_text_of_several_nodes_is_encoded_once_and_learns_from_all(
    tokenizer: Any, tokens: TokenizedTexts
) -> None:
    model = small(tokenizer, packed=False)
    sizes: list[int] = []
    model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].size(0)), with_kwargs=True
    )
    # dropout would tell two passes of one text apart
    found = model(tokens, torch.tensor([0, 2, 3, 0]))
    assert sizes == [2]
    assert torch.equal(found[0], found[1])
    model.eval()
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for nodes, scale in ((torch.tensor([0, 2, 3]), weight), (torch.tensor([0, 3]), None)):
        model.zero_grad()
        if scale is None:
            scale = torch.stack((weight[0] + weight[1], weight[2]))
        (model(tokens, nodes) * scale).sum().backward()
        gradients.append(model.encoder.encoder.layer[0].output.dense.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_encode_gives_every_node_its_row(
    tokenizer: Any, tokens: TokenizedTexts, packed: bool
) -> None:
    model = small(tokenizer, packed=packed)
    # the modes are those of the caller, whatever they were
    model.encoder.embeddings.eval()
    before = [module.training for module in model.modules()]
    expected = None
    for batch_tokens in (1, 20, None):
        found = rows_of(model, tokens, torch.tensor([6, 2, 0, 5, 2, 4]), batch_tokens=batch_tokens)
        assert not found.requires_grad
        assert [module.training for module in model.modules()] == before
        expected = found if expected is None else expected
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    model.eval()
    assert expected is not None
    alone = model(tokens, torch.tensor([6, 2, 0, 5, 2, 4]))
    torch.testing.assert_close(expected, alone.detach(), atol=1e-5, rtol=1e-5)
    assert list(model.encode(tokens, torch.empty(0, dtype=torch.int64))) == []


def test_the_caller_keeps_modes_and_gradients_between_two_results(
    tokenizer: Any, tokens: TokenizedTexts
) -> None:
    model = small(tokenizer)
    count = 0
    for _, rows in model.encode(tokens, torch.arange(7), batch_tokens=1):
        count += 1
        assert model.training
        assert model.encoder.training
        assert torch.is_grad_enabled()
        assert not rows.requires_grad
    assert count == tokens.num_texts


def test_batches_hold_texts_of_like_length_and_so_many_tokens(
    tokenizer: Any, tokens: TokenizedTexts
) -> None:
    model = small(tokenizer, packed=False)
    shapes: list[tuple[int, ...]] = []
    model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    calls: list[tuple[int, int]] = []
    nodes = torch.arange(7)
    for _ in model.encode(
        tokens, nodes, batch_tokens=20, progress=lambda done, of: calls.append((done, of))
    ):
        pass
    assert sum(shape[0] for shape in shapes) == tokens.num_texts == 5
    assert all(count * width <= 20 or count == 1 for count, width in shapes)
    assert [width for _, width in shapes] == sorted((w for _, w in shapes), reverse=True)
    assert len(shapes) < 5
    assert calls[-1] == (5, 5)
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        model.encode(tokens, nodes, batch_tokens=0)
    with pytest.raises(ValueError, match=r"dtype must be None or torch.bfloat16, got torch.float"):
        model.encode(tokens, nodes, dtype=torch.float16)


@pytest.mark.parametrize("packed", [False, True])
def test_encode_in_bfloat16_is_close(tokenizer: Any, tokens: TokenizedTexts, packed: bool) -> None:
    model = small(tokenizer, packed=packed)
    full = rows_of(model, tokens, torch.arange(7))
    half = rows_of(model, tokens, torch.arange(7), dtype=torch.bfloat16)
    assert not torch.equal(full, half)
    # eight bits of mantissa, through two layers
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


def saved(folder: pathlib.Path, tokenizer: Any, dropout: float = 0.0) -> LanguageModel:
    """A pretrained model on disk; returns the one that was written."""
    model = small(tokenizer, dropout=dropout)
    model.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_a_saved_model_is_read_back(
    tmp_path: pathlib.Path,
    tokenizer: Any,
    tokens: TokenizedTexts,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = saved(tmp_path, tokenizer)
    capfd.readouterr()
    again = LanguageModel.from_path(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert (again.width, again.max_tokens) == (16, 16)
    # else dropout would be off in training
    assert all(module.training for module in again.modules())
    nodes = torch.arange(7)
    torch.testing.assert_close(again(tokens, nodes), model(tokens, nodes))


@pytest.mark.parametrize("packed", [False, True])
def test_checkpointed_layers_have_the_same_gradients(
    tmp_path: pathlib.Path, tokenizer: Any, tokens: TokenizedTexts, packed: bool
) -> None:
    saved(tmp_path, tokenizer, dropout=0.3)
    gradients = []
    for checkpointing in (False, True):
        model = LanguageModel.from_path(
            tmp_path, gradient_checkpointing=checkpointing, packed=packed
        )
        calls: list[int] = []
        model.encoder.encoder.layer[0].attention.register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        # dropout draws the same the second time
        torch.manual_seed(1)
        model(tokens, torch.arange(7)).square().sum().backward()
        assert len(calls) == (2 if checkpointing else 1)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_packed_texts_have_the_gradients_of_padded_ones(
    tokenizer: Any, tokens: TokenizedTexts
) -> None:
    gradients = []
    for packed in (False, True):
        model = small(tokenizer, dropout=0.0, packed=packed)
        rows = model(tokens, torch.arange(7))
        (rows * torch.randn(7, 16, generator=torch.Generator().manual_seed(1))).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_positions_are_counted_as_the_model_does(
    tmp_path: pathlib.Path, tokenizer: Any, tokens: TokenizedTexts
) -> None:
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=18,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    models = [LanguageModel.from_path(tmp_path, packed=packed).eval() for packed in (False, True)]
    # the first position is the one after the padding's
    assert models[0].max_tokens == min(16, 18 - tokenizer.pad_token_id - 1)
    nodes = torch.arange(7)
    torch.testing.assert_close(models[0](tokens, nodes), models[1](tokens, nodes))


def test_a_model_whose_attention_is_its_own_is_not_packed(
    tmp_path: pathlib.Path, tokenizer: Any, tokens: TokenizedTexts
) -> None:
    config = transformers.DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.DebertaV2Model(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = LanguageModel.from_path(tmp_path)(tokens, torch.arange(7))
    assert rows.shape == (7, 16)
    with pytest.raises(ValueError, match=r"packed needs a model whose attention .*got deberta-v2"):
        LanguageModel.from_path(tmp_path, packed=True)


def test_with_lora_only_adapters_train(
    tmp_path: pathlib.Path, tokenizer: Any, tokens: TokenizedTexts
) -> None:
    saved(tmp_path, tokenizer)
    plain = LanguageModel.from_path(tmp_path)
    model = LanguageModel.from_path(tmp_path, lora_rank=4, gradient_checkpointing=True, packed=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # two layers, query and value, down and up: 16 x 4 each
    assert sum(p.numel() for p in trained.values()) == 2 * 2 * 2 * 16 * 4
    assert all("lora_" in name for name in trained)
    nodes = torch.arange(7)
    # they begin as nothing
    torch.testing.assert_close(model(tokens, nodes), plain(tokens, nodes))
    model(tokens, nodes).square().sum().backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == set(trained)
    optimizer = torch.optim.SGD(list(trained.values()), lr=0.5)
    before = model(tokens, nodes).detach()
    optimizer.step()
    assert not torch.allclose(model(tokens, nodes), before)
    with pytest.raises(ValueError, match="lora_rank must be at least 0, got -1"):
        LanguageModel.from_path(tmp_path, lora_rank=-1)


def test_a_folder_without_a_model_is_told(tmp_path: pathlib.Path, tokenizer: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected the folder \S*none of a language model"):
        LanguageModel.from_path(tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"no config.json; no weights .*; no a tokenizer .*: nothing"
    ):
        LanguageModel.from_path(tmp_path)
    saved(tmp_path, tokenizer)
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (tmp_path / name).rename(tmp_path / "away")
        with pytest.raises(ValueError, match=r"must hold a language model, got no .*there is: "):
            LanguageModel.from_path(tmp_path)
        (tmp_path / "away").rename(tmp_path / name)


def test_missing_weights_are_told(tmp_path: pathlib.Path, tokenizer: Any) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path, tokenizer)
    weights = load_file(tmp_path / "model.safetensors")
    left = {name: value for name, value in weights.items() if "layer.1." not in name}
    save_file(left, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"all weights of bert, got none for 16, the first enc"):
        LanguageModel.from_path(tmp_path)


def test_tokens_that_do_not_fit_are_told(tokenizer: Any, tokens: TokenizedTexts) -> None:
    other = train_tokenizer(TEXTS, vocabulary=280, max_tokens=16)
    with pytest.raises(ValueError, match="own tokenizer, got those of another"):
        small(other)(tokens, torch.arange(2))
    short = LanguageModel.small(tokenizer, 16, 1, 2, max_tokens=8)
    with pytest.raises(ValueError, match=r"at most 8 of a text for this model, got 1\d"):
        short(tokens, torch.arange(2))
    with pytest.raises(IndexError, match=r"nodes must be in 0 .. 6, got -1 .. 3"):
        small(tokenizer)(tokens, torch.tensor([3, -1]))
    with pytest.raises(TypeError, match=r"nodes must be int64, got torch.bool"):
        small(tokenizer).encode(tokens, torch.ones(7, dtype=torch.bool))
    with pytest.raises(ValueError, match="pooling must be one of mean, first, got 'max'"):
        small(tokenizer, pooling="max")
    with pytest.raises(ValueError, match=r"width must be divisible by heads \(3\), got 16"):
        LanguageModel.small(tokenizer, 16, 1, 3)


def test_missing_libraries_name_the_extra(
    tmp_path: pathlib.Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, tokenizer)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"lora_rank above 0 needs peft: .*'gtkern\[language\]'"):
        LanguageModel.from_path(tmp_path, lora_rank=2)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"need transformers: pip install 'gtkern\[language\]'"):
        LanguageModel.from_path(tmp_path)
