"""Checkpoints of the released Graphormer load, and what does not fit is told."""

from __future__ import annotations

import pathlib

import pytest
import small_graphs as graphs
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.padded_graphormer import PaddedGraphormer, padded
from gtkern.models import Graphormer, GraphormerSettings, load_checkpoint

NODE, EDGE, TASKS = (4, 3), (3, 2), 2
SETTINGS = GraphormerSettings(width=8, heads=2, layers=2, feedforward=6, path_length=3)


def released() -> tuple[PaddedGraphormer, dict[str, Tensor]]:
    """A network under the released names, no parameter at 0 but the padding, and its state."""
    network = PaddedGraphormer(len(NODE), len(EDGE), TASKS, SETTINGS).double().eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            torch.nn.init.normal_(value, mean=float("norm.weight" in name), std=0.5)
        for module in network.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[0] = 0
    return network, dict(network.state_dict())


def model_and_graphs():
    packed = graphs.random_graphs(node=NODE, edge=EDGE)
    Graphormer.encode(packed, SETTINGS)
    return Graphormer(NODE, TASKS, SETTINGS, edge_features=EDGE).double().eval(), packed


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under Hugging Face's names."""
    heads = {
        "encoder.embed_out.weight": "classifier.classifier.weight",
        "encoder.lm_output_learned_bias": "classifier.lm_output_learned_bias",
    }
    return {heads.get(key, key): value for key, value in state.items()}


def test_outputs_and_gradients_are_those_of_the_padded_network() -> None:
    network, state = released()
    model, packed = model_and_graphs()
    report = load_checkpoint(model, state)
    assert report.missing == report.unexpected == report.mismatched == report.padding == ()
    out = model(packed.batch(range(5)))
    expected = network(padded(packed, list(range(5)), 3, torch.device("cpu")))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    weight = torch.rand_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    attention = network.encoder.graph_encoder.layers[0].self_attn
    ours = model.layers[0].attention.in_proj_weight.grad
    theirs = [part.weight.grad for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-9, atol=1e-9)
    mixing = network.encoder.graph_encoder.graph_attn_bias.edge_dis_encoder.weight.grad
    torch.testing.assert_close(model.bias.hop.grad, mixing.view(3, 2, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["torch", "fairseq", "safetensors", "hugging face", "parallel"])
def test_files_of_every_kind_are_read(kind: str, tmp_path: pathlib.Path) -> None:
    network, state = released()
    model, packed = model_and_graphs()
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    if kind == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif kind == "fairseq":
        torch.save({"model": state, "extra_state": {"epoch": 3}}, path)
    elif kind == "parallel":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save(hugging_face(state) if kind == "hugging face" else state, path)
    report = load_checkpoint(model, path)
    assert report.missing == report.unexpected == ()
    assert str(report) == f"{len(list(model.parameters()))} parameters loaded"
    expected = network(padded(packed, [3], 3, torch.device("cpu")))
    torch.testing.assert_close(model(packed.batch([3])), expected, rtol=1e-10, atol=1e-10)


def test_hugging_faces_own_data_read_one_row_further() -> None:
    _, state = released()
    model, _ = model_and_graphs()
    load_checkpoint(model, state, first_atom_row=3)
    atoms = state["encoder.graph_encoder.graph_node_feature.atom_encoder.weight"]
    rows = torch.cat((atoms[3:7], atoms[512 + 3 : 512 + 6]))
    assert torch.equal(model.node_encoder.table.weight, rows)


def test_what_does_not_fit_is_told_and_stays() -> None:
    _, state = released()
    model, _ = model_and_graphs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    key = "encoder.graph_encoder.layers.1.self_attn.v_proj.bias"
    del state[key]
    state["encoder.masked_lm_pooler.weight"] = torch.zeros(8, 8)
    state["encoder.embed_out.weight"] = torch.zeros(5, 8)
    distances = "encoder.graph_encoder.graph_attn_bias.spatial_pos_encoder.weight"
    state[distances] = state[distances][:40]
    edges = "encoder.graph_encoder.graph_attn_bias.edge_encoder.weight"
    state[edges][0] = 1.0
    report = load_checkpoint(model, state)
    assert report.missing == ("bias.distance", "layers.1.attention.in_proj_bias", "head.weight")
    assert report.unexpected == ("masked_lm_pooler.weight",)
    assert report.padding == ("graph_encoder.graph_attn_bias.edge_encoder.weight",)
    found = {name: shapes for name, *shapes in report.mismatched}
    assert found == {
        "graph_encoder.graph_attn_bias.spatial_pos_encoder.weight": [[510, 2], [38, 2]],
        "embed_out.weight": [[2, 8], [5, 8]],
    }
    assert torch.equal(model.head.weight, before["head.weight"])
    assert "embed_out.weight must give [2, 8], has [5, 8]" in str(report)
    assert "missing: bias.distance" in str(report)


def test_features_with_more_values_than_the_checkpoint_are_told() -> None:
    _, state = released()
    model = Graphormer((600,), TASKS, SETTINGS, edge_features=EDGE)
    report = load_checkpoint(model, state)
    assert report.missing == ("node_encoder.table.weight",)
    name, expected, got = report.mismatched[0]
    assert (name.rsplit(".", 2)[1], expected, got) == ("atom_encoder", [600, 8], [510, 8])


def test_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    model, _ = model_and_graphs()
    with pytest.raises(ValueError, match="keys of a Graphormer's graph_encoder, got 1 others"):
        load_checkpoint(model, {"weight": torch.zeros(1)})
    torch.save({"model": {"graph_encoder.x": 1}, "args": pathlib.Path("x")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt must hold tensors alone"):
        load_checkpoint(model, tmp_path / "a.pt")
    torch.save(torch.zeros(1), tmp_path / "b.pt")
    with pytest.raises(ValueError, match="checkpoint must be a state dict, got Tensor"):
        load_checkpoint(model, tmp_path / "b.pt")
