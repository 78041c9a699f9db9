"""Calls the command line inside the test's own process."""

from __future__ import annotations

import sys

import pytest

from gtkern import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `gtkern` with these arguments; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["gtkern", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    code = ended.value.code
    assert isinstance(code, int) or code is None
    return code or 0
