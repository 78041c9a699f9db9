"""Whole networks, made of gtkern.nn."""

from gtkern.models.exphormer import Exphormer, SampledExphormer, ScoreEstimator, augment

__all__ = ["Exphormer", "SampledExphormer", "ScoreEstimator", "augment"]
