"""LEADING: fine-tune a language model end to end on a graph of texts.

Reference: Xue et al. 2023, "Efficient End-to-end Language Model Fine-tuning on Graphs".
"""

from gtkern.methods.leading.bank import MemoryBank
from gtkern.methods.leading.language_model import LanguageModel
from gtkern.methods.leading.tokens import TokenizedTexts, tokenize, train_tokenizer

__all__ = [
    "LanguageModel",
    "MemoryBank",
    "TokenizedTexts",
    "tokenize",
    "train_tokenizer",
]
