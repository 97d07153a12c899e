"""Reads msgspec's sentences about wrong values: one place to change with its version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

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


def allowed_values(type: Any, path: str) -> list[Any]:
    """The values that the place `path` ("a.b[0]") of a type may have: those of its literals, or of
    the field that tells the structs of a union apart; empty where the type does not list any."""
    places = list(_options(inspect.type_info(type)))
    tags: list[Any] = []
    for key in re.findall(r"[a-zA-Z_]\w*|\[", path):
        structs = [place for place in places if isinstance(place, inspect.StructType)]
        tags = [struct.tag for struct in structs if struct.tag_field == key]
        found = [field.type for s in structs for field in s.fields if field.encode_name == key]
        if key == "[":
            found = [place.item_type for place in places if isinstance(place, inspect.ListType)]
        places = [option for type in found for option in _options(type)]
    literals = (place.values for place in places if isinstance(place, inspect.LiteralType))
    return tags or [value for values in literals for value in values]


def _options(type: inspect.Type) -> Iterator[inspect.Type]:
    """The types of a union, or the type itself."""
    if isinstance(type, inspect.Metadata):
        yield from _options(type.type)
    elif isinstance(type, inspect.UnionType):
        for option in type.types:
            yield from _options(option)
    else:
        yield type
