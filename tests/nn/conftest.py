"""What tests of twins share."""

from __future__ import annotations

import pytest


@pytest.fixture
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small calls are computed by the twins too."""
    from gtkern.nn.dropin.appnp import APPNP
    from gtkern.nn.dropin.gps_conv import GPSConv
    from gtkern.nn.dropin.message_passing import MessagePassingTwin
    from gtkern.nn.dropin.topk_pooling import TopKPooling

    for twin in (MessagePassingTwin, APPNP, GPSConv, TopKPooling):
        monkeypatch.setattr(twin, "fewest", 0)
