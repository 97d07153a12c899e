"""`contains` and `uniqueItems` as unions of arrays without them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise, permutations
from typing import Any

from galley.structured.regex import TooManyStates
from galley.structured.schema.document import Node, Refused
from galley.structured.schema.expand import Expander
from galley.structured.schema.numbers import NotExpressible, plain
from galley.structured.schema.patterns import automaton_of_languages
from galley.structured.schema.sets import Arrays, Conjunction, Contains, conjoined

#: Arrays that one array with `contains` or `uniqueItems` may become.
_MAX_PARTS = 256
#: Positions at which an item of `contains` is looked for.
_WINDOW = 4
#: Values of which all orders, or all subsets in one order, are written.
_ALL_ORDERS, _ALL_SUBSETS = 4, 8
#: Classes that share no string: by the first character, upper or lower case.
_STRING_CLASSES: list[Any] = [
    {"pattern": "^[a-iA-I]"},
    {"pattern": "^[j-rJ-R]"},
    {"pattern": "^([^a-rA-R]|$)"},
]
_NUMBER_CLASSES: list[Any] = [
    {"exclusiveMaximum": 0},
    {"minimum": 0, "exclusiveMaximum": 100},
    {"minimum": 100},
]


def array_sets(arrays: Arrays, expander: Expander, near: Node) -> list[Arrays]:
    """Arrays without `contains` and `unique` whose union is the set, or a useful part of it.

    Raises:
        Refused
    """
    parts = [replace(arrays, contains=(), unique=False)]
    for contains in arrays.contains:
        parts = [p for part in parts for p in _containing(part, contains, near)]
        if len(parts) > _MAX_PARTS:
            raise Refused("leads to too many cases", "contains", near.pointer)
    if not arrays.unique:
        return parts
    result: list[Arrays] = []
    refused: Refused | None = None
    for part in parts:
        try:
            result.extend(_unique(part, expander, near))
        except Refused as error:
            refused = error
    if not result and refused is not None:
        raise refused
    return result


def _containing(arrays: Arrays, contains: Contains, near: Node) -> list[Arrays]:
    if contains.least == 0 and contains.most is None:
        return [arrays]
    if contains.most is not None and contains.least > contains.most:
        return []
    others: Conjunction = ()
    if contains.most is not None:
        if len(contains.items) != 1:
            raise Refused("cannot be negated", "maxContains", near.pointer)
        others = (contains.items[0].negated(),)
    limit = arrays.most if arrays.most is not None else contains.least + _WINDOW - 1
    window = min(limit, contains.least + _WINDOW)
    most = contains.least if contains.most is None else min(contains.most, window)
    result = []
    for count in range(contains.least, most + 1):
        for chosen in combinations(range(window), count):
            size = max(len(arrays.prefix), window if others else (chosen[-1] + 1 if chosen else 0))
            prefix = tuple(
                conjoined(arrays.item(i), contains.items if i in chosen else others)
                for i in range(size)
            )
            least = max(arrays.least, chosen[-1] + 1 if chosen else 0)
            if arrays.most is None or least <= arrays.most:
                result.append(
                    replace(
                        arrays, prefix=prefix, items=conjoined(arrays.items, others), least=least
                    )
                )
            if len(result) >= _MAX_PARTS:
                return result
    return result


def _unique(arrays: Arrays, expander: Expander, near: Node) -> list[Arrays]:
    if arrays.most is not None and arrays.most <= 1:
        return [arrays]
    if not arrays.prefix:
        values = _finite(arrays.items, expander)
        if values is not None:
            return _of_values(arrays, values, expander, near)
    # Items at positions that can never be equal.
    size = len(arrays.prefix)
    distinct = all(expander.certainly_disjoint(a, b) for a, b in combinations(arrays.prefix, 2))
    if distinct and arrays.least <= size + 1 and size:
        one_more = all(expander.certainly_disjoint(a, arrays.items) for a in arrays.prefix)
        most = size + 1 if one_more else size
        if arrays.least <= most:
            return [replace(arrays, most=most if arrays.most is None else min(most, arrays.most))]
    parts = [] if arrays.prefix else _classed(arrays, expander, near)
    if parts:
        return parts
    if arrays.least <= 1:
        return [replace(arrays, most=1)]
    raise Refused(
        "is not supported with minItems above 1 for items of this kind", "uniqueItems", near.pointer
    )


def _classed(arrays: Arrays, expander: Expander, near: Node) -> list[Arrays]:
    """Arrays with at most one item of each of a few classes, in any order."""
    if not arrays.items:
        return []
    kinds = {kind for a in expander.alternatives(arrays.items) for kind in a.types}
    if kinds == {"string"}:
        classes: list[Any] = _STRING_CLASSES
    elif kinds == {"number"}:
        classes = _NUMBER_CLASSES
    else:
        return []
    made = [(expander.document.made(part, near),) for part in classes]
    usable = [
        items for part in made if not _is_void(items := conjoined(arrays.items, part), expander)
    ]
    nothing = (expander.document.made(False, near),)
    most = len(usable) if arrays.most is None else min(arrays.most, len(usable))
    return [
        Arrays(order, nothing, len(order), len(order))
        for count in range(arrays.least, most + 1)
        for order in permutations(usable, count)
    ]


def _is_void(items: Conjunction, expander: Expander) -> bool:
    """Whether there is no such item. Patterns are looked at, too."""
    for alternative in expander.alternatives(items):
        if alternative.types != {"string"}:
            return False
        strings = alternative.strings
        try:
            automaton = None
            for languages in strings.patterns:
                one = automaton_of_languages(languages)
                automaton = one if automaton is None else automaton.intersection(one)
        except TooManyStates:
            return False
        if automaton is None or not automaton.empty:
            return False
    return True


def _of_values(arrays: Arrays, values: list[Any], expander: Expander, near: Node) -> list[Arrays]:
    most = len(values) if arrays.most is None else min(arrays.most, len(values))
    if arrays.least > most:
        return []
    document = expander.document
    nothing: Conjunction = (document.made(False, near),)
    if len(values) <= _ALL_ORDERS:
        orders = [
            [[value] for value in order]
            for count in range(arrays.least, most + 1)
            for order in permutations(values, count)
        ]
    else:
        # Chunks of values: at most one of each, in the order of the list.
        chunks = min(len(values), _ALL_SUBSETS)
        if arrays.least > chunks:
            raise Refused(
                f"with minItems above {chunks} is not supported", "uniqueItems", near.pointer
            )
        ends = [len(values) * i // chunks for i in range(chunks + 1)]
        parts = [values[a:b] for a, b in pairwise(ends)]
        orders = [
            list(order)
            for count in range(arrays.least, min(most, chunks) + 1)
            for order in combinations(parts, count)
        ]
    made: dict[str, Conjunction] = {}

    def one_of(options: list[Any]) -> Conjunction:
        return made.setdefault(repr(options), (document.made({"enum": options}, near),))

    return [
        Arrays(tuple(one_of(options) for options in order), nothing, len(order), len(order))
        for order in orders
    ]


def _finite(items: Conjunction, expander: Expander) -> list[Any] | None:
    """The values of items, if they are constants."""
    if not items:
        return None
    values: list[Any] = []
    for alternative in expander.alternatives(items):
        types = alternative.types
        if types & {"array", "object"}:
            return None
        if "null" in types:
            values.append(None)
        if "boolean" in types:
            values.extend(sorted(alternative.booleans))
        if "number" in types:
            if alternative.numbers.values is None:
                return None
            try:
                values.extend(plain(value) for value in sorted(alternative.numbers.values))
            except NotExpressible:
                return None
        if "string" in types:
            if alternative.strings.values is None or alternative.strings.patterns:
                return None
            values.extend(sorted(alternative.strings.values))
    kept: dict[tuple[bool, Any], Any] = {}
    for value in values:
        kept.setdefault((isinstance(value, bool), value), value)
    return list(kept.values())
