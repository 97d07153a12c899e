"""Sets of JSON values that schemas describe, one part for each JSON type.

An `Alternative` is a product of parts: an instance belongs to it if its type is one of `types` and
it satisfies the part of that type. A schema is a union of alternatives. Parts refer to other
schemas by *conjunctions*: tuples of nodes that must all hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, floor
from typing import Any

from galley.structured.regex import Language
from galley.structured.schema.document import Node

Conjunction = tuple[Node, ...]
TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})


class Never(Exception):
    """The intersection is empty."""


def conjoined(a: Conjunction, b: Conjunction) -> Conjunction:
    """Both, without repetition."""
    if not a or a == b:
        return b
    seen = {node.key for node in a}
    return a + tuple(node for node in b if node.key not in seen)


def key_of(conjunction: Conjunction) -> frozenset[tuple[int, bool]]:
    return frozenset(node.key for node in conjunction)


def _most(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else min(a, b)


@dataclass(frozen=True)
class Numbers:
    """A set of numbers.

    Attributes:
        low, high: bounds as (value, whether the value itself is excluded); None = none.
        multiples: each number is a multiple of all of these.
    """

    low: tuple[Fraction, bool] | None = None
    high: tuple[Fraction, bool] | None = None
    integer: bool = False
    multiples: frozenset[Fraction] = frozenset()
    values: frozenset[Fraction] | None = None

    def both(self, other: Numbers) -> Numbers:
        low = self.low if other.low is None else other.low
        if self.low and other.low:
            low = max(self.low, other.low)
        high = self.high if other.high is None else other.high
        if self.high and other.high:
            high = min(self.high, other.high, key=lambda end: (end[0], not end[1]))
        values = self.values
        if other.values is not None:
            values = other.values if values is None else values & other.values
        return Numbers(
            low,
            high,
            self.integer or other.integer,
            self.multiples | other.multiples,
            values,
        ).checked()

    def checked(self) -> Numbers:
        """The same set with constants filtered. Raises Never."""
        if self.values is not None:
            values = frozenset(filter(self._holds, self.values))
            if not values:
                raise Never
            return Numbers(values=values)
        if self.low and self.high:
            (low, no_low), (high, no_high) = self.low, self.high
            if low > high or (low == high and (no_low or no_high)):
                raise Never
        if self.integer:
            low_int, high_int = self.integer_bounds()
            if low_int is not None and high_int is not None and low_int > high_int:
                raise Never
        return self

    def integer_bounds(self) -> tuple[int | None, int | None]:
        low = high = None
        if self.low:
            value, excluded = self.low
            low = floor(value) + 1 if excluded else ceil(value)
        if self.high:
            value, excluded = self.high
            high = ceil(value) - 1 if excluded else floor(value)
        return low, high

    def _holds(self, value: Fraction) -> bool:
        if self.low and (value < self.low[0] or (value == self.low[0] and self.low[1])):
            return False
        if self.high and (value > self.high[0] or (value == self.high[0] and self.high[1])):
            return False
        if self.integer and value.denominator != 1:
            return False
        return all((value / step).denominator == 1 for step in self.multiples)


@dataclass(frozen=True)
class Strings:
    """A set of strings.

    Attributes:
        patterns: for each `pattern` keyword, the languages of which one must match.
        refused: values that are excluded.
    """

    least: int = 0
    most: int | None = None
    patterns: frozenset[tuple[Language, ...]] = frozenset()
    formats: frozenset[str] = frozenset()
    values: frozenset[str] | None = None
    refused: frozenset[str] = frozenset()

    def both(self, other: Strings) -> Strings:
        values = self.values
        if other.values is not None:
            values = other.values if values is None else values & other.values
        return Strings(
            max(self.least, other.least),
            _most(self.most, other.most),
            self.patterns | other.patterns,
            self.formats | other.formats,
            values,
            self.refused | other.refused,
        ).checked()

    def checked(self) -> Strings:
        """Raises Never. Patterns are not looked at."""
        if self.most is not None and self.least > self.most:
            raise Never
        if self.values is not None:
            values = frozenset(
                value
                for value in self.values
                if self.least <= len(value) <= (len(value) if self.most is None else self.most)
                and value not in self.refused
            )
            if not values:
                raise Never
            return replace(self, values=values, refused=frozenset(), least=0, most=None)
        return self


@dataclass(frozen=True)
class Contains:
    """`least` to `most` items satisfy `items`."""

    items: Conjunction
    least: int
    most: int | None


@dataclass(frozen=True)
class Arrays:
    """A set of arrays.

    Attributes:
        prefix: schemas of the first items, in order.
        items: of the items behind them.
        least, most: number of items.
        contains: all of these hold.
        unique: no two items are equal.
    """

    prefix: tuple[Conjunction, ...] = ()
    items: Conjunction = ()
    least: int = 0
    most: int | None = None
    contains: tuple[Contains, ...] = ()
    unique: bool = False

    def item(self, i: int) -> Conjunction:
        return self.prefix[i] if i < len(self.prefix) else self.items

    def both(self, other: Arrays) -> Arrays:
        size = max(len(self.prefix), len(other.prefix))
        result = Arrays(
            tuple(conjoined(self.item(i), other.item(i)) for i in range(size)),
            conjoined(self.items, other.items),
            max(self.least, other.least),
            _most(self.most, other.most),
            self.contains + tuple(c for c in other.contains if c not in self.contains),
            self.unique or other.unique,
        )
        if result.most is not None and result.least > result.most:
            raise Never
        return result


@dataclass(frozen=True)
class Objects:
    """A set of objects.

    Attributes:
        names: what every property name must satisfy.
        beyond: for each entry, there is a property that is not among its names, and its value
            satisfies its schemas.
    """

    properties: dict[str, Conjunction] = field(default_factory=dict)
    patterns: dict[str, Conjunction] = field(default_factory=dict)
    additional: Conjunction = ()
    required: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None
    names: Conjunction = ()
    beyond: tuple[tuple[frozenset[str], Conjunction], ...] = ()

    def of(self, name: str, matches: Callable[[str, str], bool]) -> Conjunction:
        """The schema of the value of a property."""
        if not self.patterns:
            return self.properties.get(name, self.additional)
        known = name in self.properties
        value = self.properties.get(name, ())
        for pattern, schemas in self.patterns.items():
            if matches(pattern, name):
                known = True
                value = conjoined(value, schemas)
        return value if known else self.additional

    def both(self, other: Objects, matches: Callable[[str, str], bool]) -> Objects:
        properties = {
            name: conjoined(self.of(name, matches), other.of(name, matches))
            for name in [*self.properties, *other.properties]
        }
        patterns: dict[str, Conjunction] = {}
        for pattern in [*self.patterns, *other.patterns]:
            # A key of one side's pattern is additional on the other side, unless it matches one of
            # that side's patterns too; then both hold, which is stricter and still right.
            mine = self.patterns.get(pattern, self.additional)
            theirs = other.patterns.get(pattern, other.additional)
            patterns[pattern] = conjoined(mine, theirs)
        result = Objects(
            properties,
            patterns,
            conjoined(self.additional, other.additional),
            self.required + tuple(n for n in other.required if n not in self.required),
            max(self.least, other.least),
            _most(self.most, other.most),
            conjoined(self.names, other.names),
            self.beyond + tuple(b for b in other.beyond if b not in self.beyond),
        )
        if result.most is not None and max(result.least, len(result.required)) > result.most:
            raise Never
        return result


@dataclass(frozen=True)
class Evaluated:
    """Parts that `unevaluatedProperties` and `unevaluatedItems` of a schema above leave alone."""

    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    all_names: bool = False
    items: int = 0
    all_items: bool = False

    def both(self, other: Evaluated) -> Evaluated:
        return Evaluated(
            self.names | other.names,
            self.patterns | other.patterns,
            self.all_names or other.all_names,
            max(self.items, other.items),
            self.all_items or other.all_items,
        )


NOTHING_EVALUATED = Evaluated()


@dataclass(frozen=True)
class Alternative:
    """A set of JSON values, one part for each type.

    Attributes:
        negation: it comes from a negation, so that it may be left out where others are left.
    """

    types: frozenset[str] = TYPES
    booleans: frozenset[bool] = frozenset({True, False})
    numbers: Numbers = Numbers()
    strings: Strings = Strings()
    arrays: Arrays = Arrays()
    objects: Objects = Objects()
    evaluated: Evaluated = NOTHING_EVALUATED
    negation: bool = False

    def both(self, other: Alternative, matches: Callable[[str, str], bool]) -> Alternative | None:
        """The intersection; None if it is seen to be empty."""
        if other is ANYTHING:
            return self
        if self is ANYTHING:
            return other
        types = set(self.types & other.types)
        booleans = self.booleans & other.booleans
        if not booleans:
            types.discard("boolean")
        parts: dict[str, Any] = {}
        for kind, name in _PARTS.items():
            if kind not in types:
                continue
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is theirs:
                parts[name] = mine
                continue
            try:
                parts[name] = mine.both(theirs, matches) if kind == "object" else mine.both(theirs)
            except Never:
                types.discard(kind)
        if not types:
            return None
        return Alternative(
            types=frozenset(types),
            booleans=booleans,
            evaluated=self.evaluated.both(other.evaluated),
            negation=self.negation or other.negation,
            **parts,
        )


_PARTS = {"number": "numbers", "string": "strings", "array": "arrays", "object": "objects"}
ANYTHING = Alternative()


def merged(alternatives: list[Alternative]) -> list[Alternative]:
    """The same union in fewer alternatives: constants and patterns of strings are put together."""
    values: set[str] = set()
    languages: list[Language] = []
    others = []
    for alternative in alternatives:
        strings = alternative.strings
        if alternative.types != {"string"} or alternative.evaluated != NOTHING_EVALUATED:
            others.append(alternative)
        elif strings.values is not None and strings == Strings(values=strings.values):
            values |= strings.values
        elif len(strings.patterns) == 1 and strings == Strings(patterns=strings.patterns):
            languages.extend(next(iter(strings.patterns)))
        else:
            others.append(alternative)
    string = frozenset({"string"})
    if values:
        others.append(Alternative(types=string, strings=Strings(values=frozenset(values))))
    if languages:
        patterns = frozenset([tuple(dict.fromkeys(languages))])
        others.append(Alternative(types=string, strings=Strings(patterns=patterns)))
    return others if len(others) < len(alternatives) else alternatives
