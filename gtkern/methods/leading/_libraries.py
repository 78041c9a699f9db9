"""Libraries that only language models need: imported when one is made."""

from __future__ import annotations

from typing import Any

__all__ = ["import_peft", "import_transformers"]


def import_transformers() -> Any:
    """The library.

    Raises:
        ImportError: it is missing; says which extra has it.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "language models need transformers: pip install 'gtkern[language]'"
        ) from error
    return transformers


def import_peft() -> Any:
    """The library.

    Raises:
        ImportError: it is missing; says which extra has it.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("lora_rank above 0 needs peft: pip install 'gtkern[language]'") from error
    return peft
