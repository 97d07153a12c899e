"""What one rendering of a template may use: steps of work, and characters that it makes.

A value's weight is what it is as text, about: characters of a text, the sum over a list's items
and eight for each of them, however often one item is in it. No value heavier than `MAX_SIZE` comes
into being, so that no single operation takes long, and operations cost steps by the weight that
they look at. Knows no jinja environment.
"""

from __future__ import annotations

import re
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

#: Steps of one rendering: a loop round is one. A thousand messages, looked over by each, fit.
MAX_STEPS = 5_000_000
#: Steps of a rendering on which others wait, some hundredths of a second.
QUICK_STEPS = 100_000
#: Steps that a call counts as: it takes as long as that many loop rounds.
CALL_STEPS = 50
#: Heaviest value; longest prompt.
MAX_SIZE = 1 << 23
#: Characters that a rendering may make in all. What is put together piece by piece counts again
#: with each piece.
MAX_MADE = 1 << 28
#: Largest width of a format, and size of a number in bits.
MAX_WIDTH = 10_000
MAX_BITS = 1 << 16
#: Characters that are looked at or copied in the time of a step.
CHARS_PER_STEP = 256
_ITEM = 8
_DIGITS = re.compile(r"\d+")
_NESTED = re.compile(r"\{[^}]*\{")


class TemplateLimit(SecurityError):
    """The template has used up its budget."""


class MoreSteps(TemplateLimit):
    """It takes more steps than it was given; with more, it may end well."""


class Budget:
    """What is left to one rendering."""

    __slots__ = ("_made", "_weights", "left")

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps
        self._made = 0
        # The value itself is kept, so that its id stays its own. Lists and objects of a template
        # cannot be changed (sandbox.py), so a weight stays right.
        self._weights: dict[int, tuple[Any, int]] = {}

    def spend(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise MoreSteps(f"the chat template takes more than {MAX_STEPS} steps")

    def look_at(self, value: Any) -> None:
        """Spend what it takes to go through a text, or through the items of a list."""
        if isinstance(value, str):
            self.spend(len(value) // CHARS_PER_STEP)
        elif isinstance(value, list | tuple | dict):
            self.spend(len(value) // _ITEM)

    def read(self, value: Any) -> None:
        """Spend what it takes to go through all of it, items of items included."""
        items = len(value) if isinstance(value, list | tuple | dict | range) else 0
        self.spend(items + self.weigh(value) // CHARS_PER_STEP)

    def compare(self, left: Any, right: Any) -> None:
        """Spend what a comparison or a search of one in the other takes."""
        if isinstance(left, str) or isinstance(right, str):
            self.look_at(right)
        self.spend(min(self.weigh(left), self.weigh(right)) // CHARS_PER_STEP)

    def make(self, value: Any) -> Any:
        """`value`, which has just come into being, if it may."""
        if isinstance(value, str):
            size = len(value)
            self.bound(size)
        elif isinstance(value, list | tuple | dict):
            size = _ITEM * len(value)
            self.bound(self.weigh(value))
        elif isinstance(value, Iterator):
            return self._each(value)
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise TemplateLimit("the chat template multiplies without bound")
        else:
            return value
        self._made += size
        if self._made > MAX_MADE:
            raise TemplateLimit(f"the chat template makes more than {MAX_MADE} characters")
        self.spend(size // CHARS_PER_STEP)
        return value

    def bound(self, size: int) -> None:
        """Raise TemplateLimit if a value of that weight may not come into being."""
        if size > MAX_SIZE:
            raise TemplateLimit(f"the chat template makes a value of {size} characters")

    def weigh(self, value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        if isinstance(value, list | tuple | dict):
            known = self._weights.get(id(value))
            if known is None:
                known = (value, self._sum(value))
                self._weights[id(value)] = known
            return known[1]
        if isinstance(value, KeysView | ValuesView | ItemsView):
            return self._sum(list(value))
        if isinstance(value, Namespace):
            return self._sum(object.__getattribute__(value, "_Namespace__attrs"))
        return _ITEM

    def _sum(self, items: Sequence[Any] | Mapping[Any, Any]) -> int:
        self.spend(4 + len(items))
        total = _ITEM * len(items) + sum(map(self.weigh, items))
        return total + sum(map(self.weigh, items.values())) if isinstance(items, dict) else total

    def _each(self, items: Iterator[Any]) -> Iterator[Any]:
        """What a filter yields one by one; all of it may end up in one text."""
        total = 0
        for item in items:
            self.spend()
            total += _ITEM + self.weigh(item)
            self.bound(total)
            yield item


class Counted:
    """An iterable whose rounds are counted; keeps its length, which `loop.length` asks for."""

    __slots__ = ("_items", "_spend")

    def __init__(self, items: Iterable[Any], spend: Callable[[], None]) -> None:
        self._items = items
        self._spend = spend

    def __iter__(self) -> Iterator[Any]:
        spend = self._spend
        for item in self._items:
            spend()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]


def grown(budget: Budget, name: str, value: Any, args: Sequence[Any]) -> int:
    """About how heavy the result of a filter or a text's method will be, where it may be heavier
    than what goes in. Raises TemplateLimit for a width that is a size."""
    for arg in args:
        if isinstance(arg, int) and abs(arg) > MAX_WIDTH and name in _WITH_WIDTH:
            raise TemplateLimit(f"the chat template makes a text of {arg} characters")
    rule = _GROWTH.get(name)
    return 0 if rule is None else rule(budget, value, args)


def format_size(budget: Budget, form: str, values: Any) -> int:
    """Of `form % values` or `form.format(values)`: each place may take all of the values and its
    width, both of which the places themselves may name."""
    widths = [min(int(digits[:9]), 10**9) for digits in _DIGITS.findall(form)]
    numbers = values if isinstance(values, list | tuple) else (values,)
    if "*" in form or _NESTED.search(form):
        widths += [abs(n) for n in numbers if isinstance(n, int)]
    places = form.count("%") + form.count("{")
    return len(form) + places * (max(widths, default=0) + budget.weigh(values))


def _replace(budget: Budget, value: Any, args: Sequence[Any]) -> int:
    if len(args) < 2 or not all(isinstance(part, str) for part in (value, *args[:2])):
        return 0
    return len(value) + value.count(args[0]) * len(args[1])


def _join_filter(budget: Budget, value: Any, args: Sequence[Any]) -> int:
    between = len(args[0]) if args and isinstance(args[0], str) else 0
    return budget.weigh(value) + between * (len(value) if isinstance(value, Sequence) else 1)


def _join_method(budget: Budget, value: Any, args: Sequence[Any]) -> int:
    return _join_filter(budget, args[0], (value,)) if args else 0


def _by_lines(budget: Budget, value: Any, args: Sequence[Any]) -> int:
    """indent, expandtabs: something is put in at every line or tab."""
    width = args[0] if args else 8
    width = len(width) if isinstance(width, str) else width if isinstance(width, int) else 0
    places = value.count("\n") + value.count("\t") + 1 if isinstance(value, str) else 0
    return width * places


def _by_items(budget: Budget, value: Any, args: Sequence[Any]) -> int:
    """tojson with an indent: put in at every item, as often as it is deep; few are deep."""
    width = max((abs(arg) for arg in args if isinstance(arg, int)), default=0)
    return budget.weigh(value) * (1 + width // _ITEM)


def _filled(budget: Budget, value: Any, args: Sequence[Any]) -> int:
    return _ITEM * max((abs(arg) for arg in args if isinstance(arg, int)), default=0)


def _format(budget: Budget, value: Any, args: Sequence[Any]) -> int:
    return format_size(budget, value, list(args)) if isinstance(value, str) else 0


_WITH_WIDTH = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "tojson", "batch", "slice"}
    | {"round", "format"}
)
#: Filter or method → estimate(budget, value, arguments). The names "method …" are of texts.
_GROWTH: dict[str, Callable[[Budget, Any, Sequence[Any]], int]] = {
    "replace": _replace,
    "join": _join_filter,
    "method join": _join_method,
    "indent": _by_lines,
    "expandtabs": _by_lines,
    "tojson": _by_items,
    "batch": _filled,
    "slice": _filled,
    "format": _format,
}
