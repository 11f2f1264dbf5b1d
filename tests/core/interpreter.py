"""Triton's interpreter with less to do for the same results: half the time of a test."""

from __future__ import annotations

import dataclasses
from typing import Any


def shorten() -> None:
    """Leave out two things that Triton's interpreter repeats and never uses; before Triton 3.6 it is another."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    if hasattr(interpreter, "_LangPatchScope"):
        replace_the_language_once_a_launch(interpreter)
        look_for_no_overflow(interpreter)


def replace_the_language_once_a_launch(interpreter: Any) -> None:
    """Triton replaces the names of triton.language again in every call of a device function."""
    replace, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    modules: set[int] = set()  # those of the functions that the current launch has called

    def replace_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in modules:
            return None  # only the launch uses what is returned
        modules.add(module)
        return replace(function)

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        modules.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            modules.clear()  # the launch has put the names back

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = replace_once, launch_anew


def look_for_no_overflow(interpreter: Any) -> None:
    """Triton computes every sum and product again in int64, and asserts the range only with `debug`, which is off."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
