"""Sets of characters as sorted, disjoint ranges of code points, both ends included."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

Charset = tuple[tuple[int, int], ...]

#: Every character that UTF-8 can encode: no surrogates.
ALL: Charset = ((0, 0xD7FF), (0xE000, 0x10FFFF))


def normal(ranges: Iterable[tuple[int, int]]) -> Charset:
    """Sorted and merged, without surrogates."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return intersection(tuple(merged), ALL)


def union(*sets: Charset) -> Charset:
    return normal(item for ranges in sets for item in ranges)


def intersection(a: Charset, b: Charset) -> Charset:
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            found.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def complement(ranges: Charset) -> Charset:
    gaps, start = [], 0
    for low, high in ranges:
        if start < low:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= 0x10FFFF:
        gaps.append((start, 0x10FFFF))
    return intersection(tuple(gaps), ALL)


def contains(ranges: Charset, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def both_cases(ranges: Charset) -> Charset:
    """With the other case of each ASCII letter."""
    extra = []
    for low, high in ranges:
        for first, last, shift in ((65, 90, 32), (97, 122, -32)):
            start, end = max(low, first), min(high, last)
            if start <= end:
                extra.append((start + shift, end + shift))
    return normal([*ranges, *extra])


@lru_cache(maxsize=64)
def category(name: str) -> Charset:
    """Characters of a Unicode general category such as "L" or "Nd". Empty if there is none."""
    ranges: list[tuple[int, int]] = []
    for code in range(0x110000):
        if unicodedata.category(chr(code)).startswith(name):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1] = (ranges[-1][0], code)
            else:
                ranges.append((code, code))
    return normal(ranges)


DIGIT: Charset = ((48, 57),)
WORD: Charset = ((48, 57), (65, 90), (95, 95), (97, 122))
#: White space in both dialects.
SPACE: Charset = normal(
    [
        (9, 13),
        (32, 32),
        (0xA0, 0xA0),
        (0x1680, 0x1680),
        (0x2000, 0x200A),
        (0x2028, 0x2029),
        (0x202F, 0x202F),
        (0x205F, 0x205F),
        (0x3000, 0x3000),
    ]
)
#: White space in neither dialect.
NOT_SPACE: Charset = complement(
    union(SPACE, ((0x1C, 0x1F),), ((0x85, 0x85),), ((0x180E, 0x180E),), ((0xFEFF, 0xFEFF),))
)
#: Characters that are digits in neither dialect; not all of them.
NOT_DIGIT: Charset = normal(
    [(0, 47), (58, 0x65F), (0x1E00, 0xA61F), (0xAC00, 0xD7A3), (0x1F300, 0x1F9FF)]
)
#: Characters that are part of words in neither dialect; not all of them.
NOT_WORD: Charset = union(
    intersection(complement(WORD), ((0, 127),)),
    ((0x2010, 0x2027), (0x2030, 0x203E), (0x3001, 0x3003), (0x3008, 0x3020)),
)
#: The characters that `.` matches, in JavaScript and in Python.
DOT: Charset = complement(((10, 10), (13, 13), (0x2028, 0x2029)))
PYTHON_DOT: Charset = complement(((10, 10),))
