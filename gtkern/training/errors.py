"""Mistakes of the person at the keyboard: told in one line, without a traceback."""

from __future__ import annotations

__all__ = ["InterruptedRunError", "LostProcessError", "UserError"]


class UserError(Exception):
    """Something the user can put right; the message says what."""


class InterruptedRunError(Exception):
    """The user stopped a run; its checkpoints are written."""


class LostProcessError(Exception):
    """Another process of the run is gone."""
