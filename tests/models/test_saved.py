"""A compact network goes through its files, without what pruned it."""

from __future__ import annotations

import json
import pathlib

import pytest
import small_graphs as graphs
import torch

from gtkern.models import GraphGPS, GraphGPSSettings, load_model, save_model
from gtkern.nn import BlockSparseLinear, TokenDroppingAttention

NODE, EDGE = (4, 3), (3, 2)


def make() -> tuple[GraphGPS, object]:
    settings = GraphGPSSettings(width=8, heads=2, layers=3, local="gine", walk_steps=3)
    packed = graphs.random_graphs(node=NODE, edge=EDGE)
    GraphGPS.encode(packed, settings)
    model = GraphGPS(NODE, 2, settings, edge_features=EDGE)
    model.layers[0].attention = model.layers[0].attention.keep_heads([1])
    model.layers[2].attention = TokenDroppingAttention(model.layers[2].attention, 0.5)
    model.layers[1].attention = None
    model.layers[2].widen = torch.nn.Linear(8, 5)
    model.layers[2].narrow = torch.nn.Linear(5, 8)
    linear = model.layers[0].widen
    model.layers[0].widen = BlockSparseLinear.from_linear(
        linear, (8, 8), mask=torch.tensor([[False], [True]])
    )
    return model.eval(), packed.batch(range(len(packed)))


def save(model: GraphGPS, path: pathlib.Path) -> None:
    save_model(model, path, node_features=NODE, num_tasks=2, edge_features=EDGE)


def test_what_is_loaded_computes_the_same(tmp_path: pathlib.Path) -> None:
    model, batch = make()
    save(model, tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(batch), model(batch))
    assert loaded.layers[0].attention.heads == (1,)
    assert loaded.layers[1].attention is None
    assert loaded.layers[0].widen.weight.mask().tolist() == [[False], [True]]
    assert loaded.layers[2].attention.ratio == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_files_of_another_architecture_are_refused(tmp_path: pathlib.Path) -> None:
    model, _ = make()
    save(model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    def load(**changes: object) -> None:
        path.write_text(json.dumps({**config, **changes}))
        load_model(tmp_path)

    with pytest.raises(ValueError, match=r"model must be one of GraphGPS, .*, got 'Other'"):
        load(model="Other")
    with pytest.raises(ValueError, match=r"format must be at most 1, got 2"):
        load(format=2)
    with pytest.raises(ValueError, match=r"size mismatch for layers\.0\.attention"):
        load(structure={**config["structure"], "heads": {}})
    with pytest.raises(ValueError, match=r"GraphGPS has no layers\.7"):
        load(structure={**config["structure"], "removed": ["layers.7"]})
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there: path must name a sav"):
        load_model(tmp_path)


def test_only_the_models_of_graphs_are_saved(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match=r"^model must be one of GraphGPS, .*, got Linear$"):
        save_model(torch.nn.Linear(2, 2), tmp_path, node_features=1, num_tasks=1)
