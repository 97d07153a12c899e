"""Reads msgspec's sentences about wrong values: one place to change with its version."""

from __future__ import annotations

import re

_PLACE = re.compile(r" - at `(?:key` in `)?\$(?P<path>[^`]*)`$")


def locate(sentence: str) -> tuple[str, str | None]:
    """(what is wrong, path of the value) of a `ValidationError`'s text.

    "Expected `int`, got `str` - at `$.a.b[0]`" gives ("Expected `int`, got `str`", "a.b[0]"); the
    path is None where the text names none.
    """
    place = _PLACE.search(sentence)
    if place is None:
        return sentence, None
    return sentence[: place.start()], place["path"].lstrip(".")
