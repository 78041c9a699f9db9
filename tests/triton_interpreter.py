"""Triton's interpreter without the work it does twice; what kernels compute does not change."""

from __future__ import annotations

from typing import Any


def patch_language_once_per_launch() -> None:
    """Let functions that a kernel calls find the language as the kernel's launch left it.

    The interpreter replaces every builtin of `triton.language` when a kernel is launched, and looks
    for them anew whenever the kernel calls a function: for small tensors a third of all its time.
    Versions of Triton that are built differently are left as they are.
    """
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    patch: Any = getattr(interpreter, "_patch_lang", None)
    scope: Any = getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope is None:
        return
    restore = scope.restore
    # the globals of those functions for which the language is patched, until the launch ends
    patched: dict[int, dict[str, Any]] = {}

    def patch_lang(function: Any) -> Any:
        names = function.__globals__
        if id(names) in patched:
            return scope()
        patched[id(names)] = names
        return patch(function)

    def restore_all(self: Any) -> None:
        patched.clear()
        restore(self)

    interpreter._patch_lang, scope.restore = patch_lang, restore_all
