"""The keywords of a schema that say something about one JSON type, as sets and negated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

from galley.structured.regex import Language, TooManyStates, UnsupportedPattern
from galley.structured.schema.document import Document, Node, Refused
from galley.structured.schema.patterns import generous_automaton_of, languages_of
from galley.structured.schema.sets import (
    TYPES,
    Alternative,
    Arrays,
    Contains,
    Evaluated,
    Never,
    Numbers,
    Objects,
    Strings,
)

_Result = tuple[list[Alternative], bool]


def only(kind: str, **parts: Any) -> Alternative:
    """Instances of one type."""
    return Alternative(types=frozenset({kind}), **parts)


def assertions(document: Document, node: Node) -> Alternative | None:
    """Values that the assertions of a schema allow, applicators aside; None if there are none.

    Raises:
        Refused: a keyword has a value that is not valid.
    """
    reader = _Reader(document, node)
    types, integer = reader.types()
    arrays, items = reader.arrays()
    objects, names = reader.objects()
    parts: dict[str, Any] = {}
    readers: dict[str, Callable[[], Any]] = {
        "number": lambda: reader.numbers(integer),
        "string": reader.strings,
    }
    for kind, name in (("number", "numbers"), ("string", "strings")):
        try:
            parts[name] = readers[kind]()
        except Never:
            types = types - {kind}
    if arrays.most is not None and arrays.least > arrays.most:
        types = types - {"array"}
    if objects.most is not None and max(objects.least, len(objects.required)) > objects.most:
        types = types - {"object"}
    if not types:
        return None
    evaluated = Evaluated(items=items.items, all_items=items.all_items, **names)
    return Alternative(types=types, arrays=arrays, objects=objects, evaluated=evaluated, **parts)


class _Reader:
    """Reads and checks the values of a schema's keywords."""

    def __init__(self, document: Document, node: Node) -> None:
        self.document = document
        self.node = node
        self.schema: dict[str, Any] = node.schema

    def refuse(self, keyword: str, reason: str) -> Refused:
        return Refused(reason, keyword, self.node.pointer)

    def child(self, *path: str | int) -> Node:
        value: Any = self.schema
        for step in path:
            value = value[step]
        return self.document.child(value, self.node, *path)

    def number(self, keyword: str) -> Fraction | None:
        value = self.schema.get(keyword)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(keyword, "is not a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.refuse(keyword, "is not a finite number")
        return exact(value)

    def count(self, keyword: str) -> int | None:
        value = self.number(keyword)
        if value is None:
            return None
        if value < 0 or value.denominator != 1:
            raise self.refuse(keyword, "is not a whole number ≥ 0")
        return int(value)

    def types(self) -> tuple[frozenset[str], bool]:
        """(types, whether numbers must be integers)."""
        names = self.schema.get("type")
        if names is None:
            return TYPES, False
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names:
            raise self.refuse("type", "is not a name or an array of names")
        for name in names:
            if not isinstance(name, str) or (name not in TYPES and name != "integer"):
                raise self.refuse("type", f"has the unknown type {str(name)[:80]!r}")
        integer = "integer" in names and "number" not in names
        return frozenset("number" if name == "integer" else name for name in names), integer

    def bound(self, keyword: str, exclusive: str) -> list[tuple[Fraction, bool]]:
        value, flag = self.number(keyword), self.schema.get(exclusive)
        found = []
        if value is not None:
            found.append((value, flag is True))
        if flag is not None and not isinstance(flag, bool):
            other = self.number(exclusive)
            assert other is not None
            found.append((other, True))
        return found

    def numbers(self, integer: bool) -> Numbers:
        lows = self.bound("minimum", "exclusiveMinimum")
        highs = self.bound("maximum", "exclusiveMaximum")
        multiple = self.number("multipleOf")
        if multiple is not None and multiple <= 0:
            raise self.refuse("multipleOf", "is not greater than 0")
        return Numbers(
            max(lows) if lows else None,
            min(highs, key=lambda end: (end[0], not end[1])) if highs else None,
            integer,
            frozenset() if multiple is None else frozenset([multiple]),
        ).checked()

    def strings(self) -> Strings:
        patterns = []
        if "pattern" in self.schema:
            patterns.append(_languages(self, "pattern", self.schema["pattern"]))
        name = self.schema.get("format")
        return Strings(
            self.count("minLength") or 0,
            self.count("maxLength"),
            frozenset(patterns),
            frozenset([name] if isinstance(name, str) else []),
        ).checked()

    def arrays(self) -> tuple[Arrays, Evaluated]:
        schema = self.schema
        items: tuple[Node, ...] = ()
        prefix: list[tuple[Node, ...]] = []
        keyword = "items" if isinstance(schema.get("items"), list) else "prefixItems"
        if keyword in schema:
            if not isinstance(schema[keyword], list):
                raise self.refuse(keyword, "is not an array of schemas")
            prefix = [(self.child(keyword, i),) for i in range(len(schema[keyword]))]
        rest = "additionalItems" if keyword == "items" else "items"
        if rest in schema:
            items = (self.child(rest),)
        contains: tuple[Contains, ...] = ()
        if "contains" in schema:
            least = self.count("minContains")
            contains = (
                Contains(
                    (self.child("contains"),),
                    1 if least is None else least,
                    self.count("maxContains"),
                ),
            )
        evaluated = Evaluated(items=len(prefix), all_items=rest in schema)
        unique = schema.get("uniqueItems", False)
        if not isinstance(unique, bool):
            raise self.refuse("uniqueItems", "is not true or false")
        return (
            Arrays(
                tuple(prefix),
                items,
                self.count("minItems") or 0,
                self.count("maxItems"),
                contains,
                unique,
            ),
            evaluated,
        )

    def schemas(self, keyword: str) -> dict[str, tuple[Node, ...]]:
        value = self.schema.get(keyword, {})
        if not isinstance(value, dict):
            raise self.refuse(keyword, "is not an object of schemas")
        return {name: (self.child(keyword, name),) for name in value}

    def required(self) -> list[str]:
        names = self.schema.get("required", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.refuse("required", "is not an array of names")
        return list(dict.fromkeys(names))

    def objects(self) -> tuple[Objects, dict[str, Any]]:
        schema = self.schema
        properties, patterns = self.schemas("properties"), self.schemas("patternProperties")
        for pattern in patterns:
            _languages(self, "patternProperties", pattern)
            for name in properties:
                if matches(pattern, name, self.node):
                    properties[name] += patterns[pattern]
        additional = (
            (self.child("additionalProperties"),) if "additionalProperties" in schema else ()
        )
        names = (self.child("propertyNames"),) if "propertyNames" in schema else ()
        evaluated = {
            "names": frozenset(properties),
            "patterns": frozenset(patterns),
            "all_names": bool(additional),
        }
        return (
            Objects(
                properties,
                patterns,
                additional,
                tuple(self.required()),
                self.count("minProperties") or 0,
                self.count("maxProperties"),
                names,
            ),
            evaluated,
        )


def matches(pattern: str, name: str, node: Node) -> bool:
    """Whether a key of `patternProperties` matches a name, in any dialect."""
    try:
        return generous_automaton_of(pattern).matches(name)
    except UnsupportedPattern as error:
        raise Refused(f"({pattern[:100]!r}) {error}", "patternProperties", node.pointer) from None
    except TooManyStates:
        raise Refused(
            f"({pattern[:100]!r}) is too complex", "patternProperties", node.pointer
        ) from None


def _languages(reader: _Reader, keyword: str, pattern: Any) -> tuple[Language, ...]:
    if not isinstance(pattern, str):
        raise reader.refuse(keyword, "is not a string")
    try:
        return languages_of(pattern)
    except UnsupportedPattern as error:
        shown = pattern if len(pattern) <= 100 else pattern[:100] + "…"
        raise reader.refuse(keyword, f"({shown!r}) {error}") from None


def exact(value: int | float) -> Fraction:
    """The decimal value that a number's shortest text has."""
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


# ---------------------------------------------------------------------------- constants


@dataclass
class Values:
    """The values of an `enum`, by type."""

    null: bool = False
    booleans: set[bool] = field(default_factory=set)
    numbers: set[Fraction] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)
    structures: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, values: list[Any], node: Node) -> Values:
        found = cls()
        for value in values:
            if value is None:
                found.null = True
            elif isinstance(value, bool):
                found.booleans.add(value)
            elif isinstance(value, int | float):
                if isinstance(value, float) and not math.isfinite(value):
                    raise Refused("has a number that is not finite", "enum", node.pointer)
                found.numbers.add(exact(value))
            elif isinstance(value, str):
                found.strings.add(value)
            else:
                found.structures.append(value)
        return found

    def scalars(self) -> list[Alternative]:
        types = {
            "null": self.null,
            "boolean": self.booleans,
            "number": self.numbers,
            "string": self.strings,
        }
        present = frozenset(kind for kind, values in types.items() if values)
        if not present:
            return []
        return [
            Alternative(
                types=present,
                booleans=frozenset(self.booleans) or frozenset({True, False}),
                numbers=Numbers(values=frozenset(self.numbers)) if self.numbers else Numbers(),
                strings=Strings(values=frozenset(self.strings)) if self.strings else Strings(),
            )
        ]

    def others(self) -> _Result:
        """Instances that are none of the values. Arrays and objects only if no value is one."""
        types = set(TYPES) - {"number"}
        if self.null:
            types.discard("null")
        booleans = frozenset({True, False}) - self.booleans
        if not booleans:
            types.discard("boolean")
        for value in self.structures:
            types.discard("array" if isinstance(value, list) else "object")
        result = [
            Alternative(
                types=frozenset(types),
                booleans=booleans or frozenset({True, False}),
                strings=Strings(refused=frozenset(self.strings)),
            )
        ]
        ends: list[tuple[Fraction, bool] | None]
        ends = [None, *((value, True) for value in sorted(self.numbers)), None]
        result.extend(only("number", numbers=Numbers(low, high)) for low, high in pairwise(ends))
        return result, not self.structures


def constant(document: Document, value: Any, node: Node) -> Alternative:
    """Exactly this array or object."""

    def just(item: Any) -> tuple[Node, ...]:
        return (document.made({"const": item}, node),)

    nothing = (document.made(False, node),)
    if isinstance(value, list):
        arrays = Arrays(tuple(map(just, value)), nothing, len(value), len(value))
        return only("array", arrays=arrays, evaluated=Evaluated())
    properties = {name: just(item) for name, item in value.items()}
    objects = Objects(properties, {}, nothing, tuple(properties))
    return only("object", objects=objects, evaluated=Evaluated())


# ---------------------------------------------------------------------------- negation


def negated_assertions(document: Document, node: Node) -> list[Callable[[], _Result]]:
    """For each assertion of a schema, a function that gives the instances that violate it.

    The functions return (instances, whether these are all) and raise Refused where they cannot be
    described. Constants, patterns and applicators are not among the assertions.
    """
    reader = _Reader(document, node)

    def negated(keyword: str) -> _Result:
        # Numbers that are no integers cannot be described.
        all_of_them = keyword != "type" or not reader.types()[1]
        return _NEGATED[keyword](reader, keyword), all_of_them

    return [partial(negated, keyword) for keyword in _NEGATED if keyword in node.schema]


def _not_type(reader: _Reader, keyword: str) -> list[Alternative]:
    types, integer = reader.types()
    if integer and types == TYPES:
        raise reader.refuse(keyword, "cannot be negated")
    rest = TYPES - types
    return [Alternative(types=rest)] if rest else []


def _not_bound(reader: _Reader, keyword: str) -> list[Alternative]:
    lower = keyword in ("minimum", "exclusiveMinimum")
    pair = ("minimum", "exclusiveMinimum") if lower else ("maximum", "exclusiveMaximum")
    if keyword == pair[1] and isinstance(reader.schema[keyword], bool):
        return []  # Part of the other keyword, in draft 4.
    value = reader.number(keyword)
    assert value is not None
    excluded = keyword == pair[1] or reader.schema.get(pair[1]) is True
    end = (value, not excluded)
    numbers = Numbers(high=end) if lower else Numbers(low=end)
    return [only("number", numbers=numbers)]


def _not_count(reader: _Reader, keyword: str) -> list[Alternative]:
    count = reader.count(keyword)
    assert count is not None
    if keyword.startswith("min") and count == 0:
        return []
    bounds: dict[str, Any] = (
        {"most": count - 1} if keyword.startswith("min") else {"least": count + 1}
    )
    if keyword.endswith("Length"):
        return [only("string", strings=Strings(**bounds))]
    if keyword.endswith("Items"):
        return [only("array", arrays=Arrays(**bounds))]
    return [only("object", objects=Objects(**bounds))]


def _not_required(reader: _Reader, keyword: str) -> list[Alternative]:
    nothing = (reader.document.made(False, reader.node),)
    return [
        only("object", objects=Objects(properties={name: nothing})) for name in reader.required()
    ]


def _not_properties(reader: _Reader, keyword: str) -> list[Alternative]:
    return [
        only(
            "object",
            objects=Objects(
                properties={name: tuple(child.negated() for child in schemas)}, required=(name,)
            ),
        )
        for name, schemas in reader.schemas("properties").items()
        if schemas[0].schema is not True
    ]


def _not_items(reader: _Reader, keyword: str) -> list[Alternative]:
    schema = reader.schema
    if isinstance(schema[keyword], list):
        result = []
        for i in range(len(schema[keyword])):
            prefix = (*((),) * i, (reader.child(keyword, i).negated(),))
            result.append(only("array", arrays=Arrays(prefix=prefix, least=i + 1)))
        return result
    if "prefixItems" in schema:
        raise reader.refuse(keyword, "cannot be negated beside prefixItems")
    contains = Contains((reader.child(keyword).negated(),), 1, None)
    return [only("array", arrays=Arrays(contains=(contains,)))]


def _not_contains(reader: _Reader, keyword: str) -> list[Alternative]:
    if "minContains" in reader.schema or "maxContains" in reader.schema:
        raise reader.refuse(keyword, "cannot be negated beside minContains or maxContains")
    return [only("array", arrays=Arrays(items=(reader.child(keyword).negated(),)))]


def _not_additional(reader: _Reader, keyword: str) -> list[Alternative]:
    if reader.schema.get("patternProperties"):
        raise reader.refuse(keyword, "cannot be negated beside patternProperties")
    extra = reader.child(keyword).negated()
    if extra.schema is True:
        return []
    names = frozenset(reader.schemas("properties"))
    beyond = (names, () if extra.schema is False else (extra,))
    return [only("object", objects=Objects(beyond=(beyond,)))]


def _not_expressible(reader: _Reader, keyword: str) -> list[Alternative]:
    value = reader.schema[keyword]
    if value is True and keyword != "uniqueItems":
        return []
    if value is False and keyword == "uniqueItems":
        return []
    raise reader.refuse(keyword, "cannot be negated")


_NEGATED: dict[str, Callable[[_Reader, str], list[Alternative]]] = {
    "type": _not_type,
    "required": _not_required,
    "properties": _not_properties,
    "minimum": _not_bound,
    "exclusiveMinimum": _not_bound,
    "maximum": _not_bound,
    "exclusiveMaximum": _not_bound,
    "minLength": _not_count,
    "maxLength": _not_count,
    "minItems": _not_count,
    "maxItems": _not_count,
    "minProperties": _not_count,
    "maxProperties": _not_count,
    "prefixItems": _not_items,
    "items": _not_items,
    "contains": _not_contains,
    "multipleOf": _not_expressible,
    "uniqueItems": _not_expressible,
    "additionalItems": _not_expressible,
    "additionalProperties": _not_additional,
    "patternProperties": _not_expressible,
    "propertyNames": _not_expressible,
}
