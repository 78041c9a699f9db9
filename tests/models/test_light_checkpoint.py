"""Checkpoints in the naming of KPGT's released network, drawn at random."""

from __future__ import annotations

import pathlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gtkern.models import LiGhT, LiGhTSettings, load_light_checkpoint
from gtkern.ragged import Ragged

NODE, EDGE, FINGERPRINT, DESCRIPTORS = 7, 3, 6, 5
SETTINGS = LiGhTSettings(
    width=8,
    heads=2,
    layers=2,
    path_length=3,
    path_width=4,
    head_width=8,
    fingerprint_features=FINGERPRINT,
    descriptor_features=DESCRIPTORS,
    dropout=0.0,
    attention_dropout=0.0,
)


def released() -> dict[str, Tensor]:
    """A state dict with the names and shapes of src/model/light.py, in small."""
    width, narrow, heads = SETTINGS.width, SETTINGS.path_width, SETTINGS.heads
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def mlp(name: str, inputs: int, hidden: int, outputs: int) -> None:
        linear(f"{name}.in_proj", inputs, hidden)
        linear(f"{name}.out_proj", hidden, outputs)

    linear("node_emb.in_proj", NODE, width)
    linear("edge_emb.in_proj", EDGE, width)
    mlp("triplet_emb.in_proj", 2 * width, width, width)
    mlp("triplet_emb.fp_proj", FINGERPRINT, width, width)
    mlp("triplet_emb.md_proj", DESCRIPTORS, width, width)
    one = ("node_emb.virtual_atom_emb", "edge_emb.virutal_bond_emb", "mask_emb", "model.mask_emb")
    for name in (*one, "model.virtual_path_emb", "model.self_loop_emb"):
        shapes[f"{name}.weight"] = (1, width)
    shapes["model.path_len_emb.weight"] = (SETTINGS.path_length + 1, width)
    for name, inside, outputs in (("dist", width, heads), ("path", narrow, heads)):
        linear(f"model.{name}_attn_layer.0", inside, inside)
        linear(f"model.{name}_attn_layer.2", inside, outputs)
    for place in range(SETTINGS.path_length):
        mlp(f"model.trip_fortrans.{place}", width, narrow, narrow)
    for depth in range(SETTINGS.layers):
        layer = f"model.mol_T_layers.{depth}."
        for norm in ("attention_norm", "node_out_layer.norm"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (width,)
        linear(f"{layer}qkv", width, 3 * width)
        linear(f"{layer}node_out_layer.in_proj", width, width)
        mlp(f"{layer}node_out_layer.ffn", width, 4 * width, width)
    linear("node_predictor.0", width, width)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def network() -> LiGhT:
    return LiGhT(NODE, 2, SETTINGS, edge_features=EDGE).eval()


def test_all_but_the_head_is_filled(tmp_path: pathlib.Path) -> None:
    state = released()
    path = tmp_path / "base.pth"
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    model = network()
    report = load_light_checkpoint(model, path)
    assert {name.split(".")[0] for name in report.missing} == {"head"}
    assert not report.mismatched
    assert set(report.unexpected) == {
        "mask_emb.weight",
        "model.mask_emb.weight",
        "node_predictor.0.weight",
        "node_predictor.0.bias",
    }
    lengths = state["model.path_len_emb.weight"]
    ends = state["model.self_loop_emb.weight"], state["model.virtual_path_emb.weight"]
    assert torch.equal(model.bias.distance.weight, torch.cat((ends[0], lengths[2:], ends[1])))
    assert torch.equal(model.triplets.virtual_bond, state["edge_emb.virutal_bond_emb.weight"])


def test_a_layer_computes_what_the_released_one_does() -> None:
    state = released()
    model = network()
    load_light_checkpoint(model, state)
    x = torch.randn(5, SETTINGS.width)
    own = {
        name.removeprefix("model.mol_T_layers.1."): value
        for name, value in state.items()
        if name.startswith("model.mol_T_layers.1.")
    }

    def linear(name: str, value: Tensor) -> Tensor:
        return functional.linear(value, own[f"{name}.weight"], own[f"{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        return functional.layer_norm(
            value, (SETTINGS.width,), own[f"{name}.weight"], own[f"{name}.bias"]
        )

    # there a row's own key meets the queries of the rows that it reads
    query, key, value = linear("qkv", norm("attention_norm", x)).view(5, 3, 2, 4).unbind(1)
    scores = torch.einsum("jhd,ihd->hij", query, key) * SETTINGS.width**-0.5
    read = torch.einsum("hij,jhd->ihd", scores.softmax(-1), value).reshape(5, -1)
    middle = x + linear("node_out_layer.in_proj", read)
    hidden = functional.gelu(
        linear("node_out_layer.ffn.in_proj", norm("node_out_layer.norm", middle))
    )
    expected = middle + linear("node_out_layer.ffn.out_proj", hidden)
    found = model.layers[1](x, Ragged.from_ptr(torch.tensor([0, 5])))
    torch.testing.assert_close(found, expected)


def test_what_does_not_fit_is_told() -> None:
    state = released()
    state["node_emb.in_proj.weight"] = torch.zeros(8, 9)
    report = load_light_checkpoint(network(), state)
    assert report.mismatched == (("node_emb.in_proj.weight", [8, 7], [8, 9]),)
    with pytest.raises(ValueError, match=r"must have keys of a LiGhT's model\.mol_T_layers, got 1"):
        load_light_checkpoint(network(), {"weight": torch.zeros(1)})
