"""How many parameters are trained, and of how many."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gtkern.methods.deepgpt.tuner import PromptTuner

__all__ = ["ParameterCounts", "parameter_counts"]


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Numbers of parameters of a tuned network.

    Attributes:
        prompts: trained in the prompts, with what makes them while they are trained.
        head: trained in the head.
        backbone: frozen, without the model's own head.
    """

    prompts: int
    head: int
    backbone: int

    @property
    def trained(self) -> int:
        """Prompts and head."""
        return self.prompts + self.head

    @property
    def share(self) -> float:
        """Prompts over the backbone: the head is counted on neither side."""
        return self.prompts / self.backbone

    @property
    def share_with_head(self) -> float:
        """Prompts and head over the backbone and the head, which is what full training trains."""
        return self.trained / (self.backbone + self.head)

    def __str__(self) -> str:
        return (
            f"{self.prompts:,} of {self.backbone:,} parameters ({self.share:.2%}); with the head "
            f"{self.trained:,} of {self.backbone + self.head:,} ({self.share_with_head:.2%})"
        )


def parameter_counts(tuner: PromptTuner) -> ParameterCounts:
    """Count the parameters of a tuner."""
    own = tuner.model.head
    assert isinstance(own, nn.Module)
    unused = _count(own)
    return ParameterCounts(
        prompts=_count(tuner.prompts),
        head=0 if tuner.head is None else _count(tuner.head),
        backbone=_count(tuner.model) - unused,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
