"""Griffe extension: docstrings introduce blocks of formulas by "::", which Markdown would show."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

LITERAL_BLOCK = re.compile(r"::$", flags=re.MULTILINE)


class LiteralBlocks(Extension):
    """Makes the "::" before an indented block a colon."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of one object, once it is collected."""
        if obj.docstring is not None:
            obj.docstring.value = LITERAL_BLOCK.sub(":", obj.docstring.value)
