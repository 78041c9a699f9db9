"""What the pictures of pruning show."""

from __future__ import annotations

import pathlib

import pytest
import small_models
import torch

from gtkern.methods.gtsp import TokenPruner, token_pictures
from gtkern.methods.gtsp.pictures import kept_counts, watched


@pytest.mark.parametrize("name", ["graphgps", "graphtrans", "graphormer"])
def test_kept_tokens_are_counted_by_node(name: str) -> None:
    model, packed = small_models.make(name)
    batch = packed.batch(range(len(packed)))
    assert kept_counts(model, batch) is None
    pruner = TokenPruner(0.5)
    pruner.prepare(model)
    pruner.compact()
    found = kept_counts(model, batch)
    assert found is not None
    counts, layers = found
    assert layers == 3
    by_graph = torch.segment_reduce(counts.double(), "sum", offsets=batch.ptr)
    sizes = batch.ptr.diff()
    # a token of the model's own is kept always, and counts
    own = int(name != "graphgps")
    kept = torch.ceil(0.5 * (sizes + own).double()) - own
    assert by_graph.tolist() == (3 * kept).tolist()


def test_lights_tokens_are_no_nodes() -> None:
    model, packed = small_models.make("light")
    TokenPruner(0.5).prepare(model)
    assert kept_counts(model, packed.batch([0])) is None


def test_molecules_and_graphs_are_drawn(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("rdkit")
    _, packed = small_models.make("graphgps")
    counts = torch.arange(packed.x.size(0)) % 4
    batch = packed.batch(range(len(packed)))
    token_pictures.draw(tmp_path / "graphs.png", batch, counts, 3)
    chain = "C" * int(batch.ptr[1])
    token_pictures.draw(tmp_path / "molecule.png", packed.batch([0]), counts, 3, smiles=[chain])
    for path in tmp_path.iterdir():
        assert path.stat().st_size > 5000


def test_what_layers_and_heads_give_is_watched_and_left_alone() -> None:
    model, packed = small_models.make("graphtrans")
    batch = packed.batch(range(len(packed)))
    attends = [layer.attention.attend for layer in model.layers]
    outputs, heads = watched(model, batch)
    assert [layer.attention.attend for layer in model.layers] == attends
    rows = batch.x.size(0) + len(packed)
    assert [value.shape for value in outputs.values()] == [(rows, 16)] * 3
    assert [value.shape for value in heads.values()] == [(rows, 4, 4)] * 3
    assert model.training
