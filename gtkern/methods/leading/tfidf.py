"""TF-IDF of the texts: what the shallow baseline is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["tfidf"]

WORDS = 2000


def tfidf(texts: Sequence[str], words: int = WORDS) -> Tensor:
    """The rows of scikit-learn's TfidfVectorizer.

    Args:
        texts: of the N nodes.
        words: the most frequent ones, but for English stop words, are the features.

    Returns:
        float32 [N, words], or fewer where there are not as many.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ImportError("TF-IDF needs scikit-learn: pip install 'gtkern[language]'") from error
    vectorizer = TfidfVectorizer(
        max_features=words, stop_words="english", sublinear_tf=True, dtype=np.float32
    )
    return torch.from_numpy(vectorizer.fit_transform(texts).toarray())
