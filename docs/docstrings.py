"""Griffe extension: reads two habits of the docstrings that it has no rule for."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

LITERAL_BLOCK = re.compile(r"::$", flags=re.MULTILINE)
TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+)(:(?: .*)?(?:\n\1 +.*)*)$", flags=re.MULTILINE)


class Habits(Extension):
    """Formulas behind "::", which Markdown would show, and names described together."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of one object, once it is collected."""
        if obj.docstring is not None:
            text = LITERAL_BLOCK.sub(":", obj.docstring.value)
            obj.docstring.value = TOGETHER.sub(apart, text)


def apart(found: re.Match[str]) -> str:
    """Give each of several names the description of all; errors share one line as they are."""
    indent, names, rest = found.groups()
    if names[0].isupper():
        return found[0]
    return "\n".join(f"{indent}{name}{rest}" for name in names.split(", "))
