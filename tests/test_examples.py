"""The examples run, and learn."""

from __future__ import annotations

import pytest

from examples import (
    gps_conv_molecules,
    graphormer_molecules,
    pruned_mlp,
    transformer_conv_nodes,
)


def test_nodes_with_transformer_conv(capsys: pytest.CaptureFixture[str]) -> None:
    score = transformer_conv_nodes.main(["--epochs", "12", "--rows", "30"])
    assert "replaced: 3" in capsys.readouterr().out
    assert score > 0.65


def test_accelerated_training_is_the_same_training() -> None:
    options = ["--epochs", "2", "--graphs", "60"]
    assert gps_conv_molecules.main(options) == gps_conv_molecules.main([*options, "--plain"])


def test_molecules_with_gps_conv(capsys: pytest.CaptureFixture[str]) -> None:
    share = gps_conv_molecules.main(["--epochs", "4", "--graphs", "300"])
    assert "replaced: 3" in capsys.readouterr().out
    assert share > 0.3


def test_molecules_with_a_graphormer(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs", "2", "--graphs", "60"]
    share = graphormer_molecules.main(options)
    assert "replaced: 3" in capsys.readouterr().out
    assert share == graphormer_molecules.main([*options, "--plain"])


def test_a_pruned_mlp(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs", "5", "--points", "5120", "--width", "256"]
    share = pruned_mlp.main(options)
    assert "replaced: 2" in capsys.readouterr().out
    assert share == pytest.approx(pruned_mlp.main([*options, "--plain"]), abs=0.03)
    assert share > 0.25
