"""Sets of numbers as schemas that a grammar keeps exactly, or in part."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from galley.structured.schema.sets import Numbers

#: Largest integer that a bound may have: the libraries keep bounds in doubles.
_EXACT = 1 << 53
_LARGEST = 1 << 62
#: Largest multipleOf: the automaton has as many states.
MAX_STEP = 10_000
#: Multiples that are tried one by one where a step has no exact binary form.
_TRIED = 200


class NotExpressible(ValueError):
    """No number of the set can be described; the message says why."""


def number_schemas(numbers: Numbers) -> list[dict[str, Any]]:
    """Schemas whose union is the set, or a part of it that is not empty.

    Raises:
        NotExpressible
    """
    if numbers.values is not None:
        return [{"enum": [plain(value) for value in sorted(numbers.values)]}]
    step = _common(numbers.multiples)
    if numbers.integer or (step is not None and step.denominator == 1):
        return [_integers(numbers, None if step is None else _lcm(step, Fraction(1)))]
    if step is None:
        return [{"type": "number", **_bounds(numbers)}]
    return _fractions(numbers, step)


def plain(value: Fraction) -> int | float:
    """The number as JSON has it. Raises NotExpressible if a double cannot hold it."""
    if value.denominator == 1:
        if abs(value) > _EXACT and int(float(value)) != value:
            raise NotExpressible(f"has the integer {int(value)}, which no double holds exactly")
        return int(value)
    return float(value)


def _lcm(a: Fraction, b: Fraction) -> Fraction:
    return Fraction(math.lcm(a.numerator, b.numerator), math.gcd(a.denominator, b.denominator))


def _common(steps: frozenset[Fraction]) -> Fraction | None:
    result: Fraction | None = None
    for step in steps:
        result = step if result is None else _lcm(result, step)
    return result


def _integers(numbers: Numbers, step: Fraction | None) -> dict[str, Any]:
    low, high = numbers.integer_bounds()
    schema: dict[str, Any] = {"type": "integer"}
    if low is not None:
        if low > _LARGEST:
            raise NotExpressible(f"is greater than {_LARGEST}")
        schema["minimum"] = _inward(max(low, -_LARGEST), up=True)
    if high is not None:
        if high < -_LARGEST:
            raise NotExpressible(f"is less than {-_LARGEST}")
        schema["maximum"] = _inward(min(high, _LARGEST), up=False)
    if step is not None and step != 1:
        if step > MAX_STEP:
            raise NotExpressible(f"has a multipleOf greater than {MAX_STEP}")
        schema["multipleOf"] = int(step)
        if low is not None and high is not None and (high // step) * step < low:
            raise NotExpressible("has no multiple between its bounds")
    return schema


def _inward(bound: int, *, up: bool) -> int:
    """The nearest integer that a double holds, on the inner side."""
    while abs(bound) > _EXACT and int(float(bound)) != bound:
        bound += 1 if up else -1
    return bound


def _bounds(numbers: Numbers) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for end, name, toward in (
        (numbers.low, "inimum", math.inf),
        (numbers.high, "aximum", -math.inf),
    ):
        if end is None:
            continue
        value, excluded = end
        if abs(value) > 10**300:
            raise NotExpressible("has a bound beyond 1e300")
        number = float(value)
        if value.denominator == 1 and abs(value) <= _EXACT:
            bound: int | float = int(value)
        else:
            outside = Fraction(number) < value if toward > 0 else Fraction(number) > value
            # The shortest text of a double is the value that a validator compares with.
            if value.denominator == 1 and outside:
                number = math.nextafter(number, toward)
            bound = number
        letter = "m"
        schema[f"exclusiveM{name}" if excluded else letter + name] = bound
    return schema


def _fractions(numbers: Numbers, step: Fraction) -> list[dict[str, Any]]:
    """Multiples of a step that is no integer.

    Validators divide in double precision, where 0.07 / 0.01 is no whole number. Only multiples are
    kept for which that division is exact: those that are also multiples of a power of 1/2.
    """
    binary = _lcm(step, Fraction(1, _power_of_two(step.denominator)))
    error = abs(Fraction(float(step)) / step - 1)
    if error < Fraction(1, 1 << 53) / 2 or error == Fraction(1, 1 << 54):
        bounds = _bounds(numbers)
        if binary.denominator == 1:
            return [_integers(numbers, binary)]
        return [{"type": "number", **bounds, "multipleOf": float(binary)}]
    start = math.ceil(numbers.low[0] / step) if numbers.low else 0
    end = math.floor(numbers.high[0] / step) if numbers.high else start + _TRIED
    if numbers.low is None and numbers.high is not None:
        start = end - _TRIED
    kept = []
    for k in range(start, min(end, start + _TRIED) + 1):
        value = k * step
        number = plain(value)
        if (float(number) / float(step)).is_integer() and numbers._holds(value):
            kept.append(number)
    if not kept:
        raise NotExpressible("has no multiple between its bounds")
    return [{"enum": kept}]


def _power_of_two(denominator: int) -> int:
    """The largest power of two that divides it, at most 2**20."""
    return min(denominator & -denominator, 1 << 20)
