"""DeepGPT: tune a frozen graph transformer by prompts, with a few thousandths of its parameters.

Reference: Shirkavand and Huang 2023, "Deep Prompt Tuning for Graph Transformers".
"""

from gtkern.methods.deepgpt.backbone import new_head
from gtkern.methods.deepgpt.counts import ParameterCounts, parameter_counts
from gtkern.methods.deepgpt.files import Fingerprint, load_prompts, open_prompts, save_prompts
from gtkern.methods.deepgpt.library import PromptLibrary
from gtkern.methods.deepgpt.prompts import Prompts
from gtkern.methods.deepgpt.tuner import PromptTuner

__all__ = [
    "Fingerprint",
    "ParameterCounts",
    "PromptLibrary",
    "PromptTuner",
    "Prompts",
    "load_prompts",
    "new_head",
    "open_prompts",
    "parameter_counts",
    "save_prompts",
]
