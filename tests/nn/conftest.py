"""What tests of twins share."""

from __future__ import annotations

import pytest


@pytest.fixture
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small calls are computed by the twins too."""
    from gtkern.nn.dropin.appnp import APPNP
    from gtkern.nn.dropin.encoder_layer import TransformerEncoderLayer
    from gtkern.nn.dropin.exphormer_attention import CopiedExphormerAttention
    from gtkern.nn.dropin.gat_conv import GATConv
    from gtkern.nn.dropin.gatv2_conv import GATv2Conv
    from gtkern.nn.dropin.gps_conv import GPSConv
    from gtkern.nn.dropin.graphormer_attention import CopiedGraphormerAttention
    from gtkern.nn.dropin.message_passing import MessagePassingTwin
    from gtkern.nn.dropin.multihead_attention import MultiheadAttention
    from gtkern.nn.dropin.topk_pooling import TopKPooling

    padded = (MultiheadAttention, TransformerEncoderLayer, CopiedGraphormerAttention)
    on_edges = (MessagePassingTwin, GATv2Conv, APPNP, CopiedExphormerAttention)
    for twin in (GPSConv, TopKPooling, *on_edges, *padded):
        monkeypatch.setattr(twin, "fewest", 0)
    monkeypatch.setattr(GATConv, "fewest_new", 0)
    monkeypatch.setattr(GATv2Conv, "narrow", 0)
    monkeypatch.setattr(CopiedGraphormerAttention, "fullest", 1.0)
