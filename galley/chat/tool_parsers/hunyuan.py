"""Markers of Hunyuan 3 and 4, whose spelling ends with a suffix of the checkpoint.

The tables of formats have `SUFFIX`; the vocabulary tells which one a checkpoint has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")

SUFFIX = ":opensource"
_MARKER = re.compile(r"<(?:think|tool_calls|tool_call|arg_key|arg_value)(:[^\s<>]+)?>")


def hunyuan_suffix(tokens: Iterable[str]) -> str | None:
    """The suffix of the markers in a vocabulary; None where it has no such markers."""
    found = next((match for token in tokens if (match := _MARKER.fullmatch(token))), None)
    return None if found is None else found[1] or ""


def with_suffix(format: T, suffix: str) -> T:
    """A format whose markers end with `suffix` instead of `SUFFIX`."""
    if not is_dataclass(format) or isinstance(format, type):
        return format
    changed = {f.name: _changed(getattr(format, f.name), suffix) for f in fields(format) if f.init}
    return replace(format, **changed)


def _changed(value: Any, suffix: str) -> Any:
    if isinstance(value, str):
        return value.replace(f"{SUFFIX}>", f"{suffix}>")
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(_changed(item, suffix) for item in value))
    return value
