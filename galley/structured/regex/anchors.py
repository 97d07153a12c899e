"""From a pattern with anchors and lookaheads to languages of whole strings."""

from __future__ import annotations

from dataclasses import dataclass, field

from galley.structured.regex import charset
from galley.structured.regex.syntax import (
    EMPTY,
    Anchor,
    Chars,
    Concat,
    Either,
    Lookaround,
    Repeat,
    Tree,
    UnsupportedPattern,
    parse,
)

#: Most alternatives that anchors inside groups may multiply to.
_MAX_CASES = 200
ANYTHING: Tree = Repeat(Chars(charset.ALL), 0, None)


@dataclass(frozen=True)
class Language:
    """Strings that match all of `required` and none of `excluded`, as a whole."""

    required: tuple[Tree, ...]
    excluded: tuple[Tree, ...] = ()


@dataclass(frozen=True)
class _Case:
    """One alternative: `body` between anchors, under conditions on the rest of the string."""

    start: bool
    body: Tree
    end: bool
    looks: tuple[Lookaround, ...] = field(default=())


def search(pattern: str, *, generous: bool = False) -> tuple[Language, ...]:
    """Languages whose union is every string in which the pattern is found, as JSON Schema means it.

    Raises:
        UnsupportedPattern
    """
    return _languages(_cases(parse(pattern, generous=generous)))


def search_not(pattern: str) -> list[tuple[Language, ...]]:
    """Strings in which the pattern is not found, in any dialect: one of each tuple must match.

    Raises:
        UnsupportedPattern
    """
    return [
        tuple(
            [Language((), (tree,)) for tree in language.required]
            + [Language((tree,)) for tree in language.excluded]
        )
        for language in search(pattern, generous=True)
    ]


def whole(pattern: str) -> tuple[Language, ...]:
    """Languages whose union is every string that the pattern matches from start to end.

    Raises:
        UnsupportedPattern
    """
    start, end = Anchor(end=False), Anchor(end=True)
    return _languages(_cases(Concat((start, parse(pattern), end))))


def _languages(cases: list[_Case]) -> tuple[Language, ...]:
    plain = [_padded(case) for case in cases if not case.looks]
    found = [Language((_either(plain),))] if plain else []
    for case in cases:
        if case.looks:
            found.append(_with_looks(case))
    return tuple(found)


def _with_looks(case: _Case) -> Language:
    if not case.start:
        raise UnsupportedPattern("uses a lookahead that does not stand at the start of the string")
    required = [_padded(case)]
    excluded: list[Tree] = []
    for look in case.looks:
        followed = [_Case(True, item.body, item.end) for item in _cases(look.body)]
        if any(item.looks or item.start for item in _cases(look.body)):
            raise UnsupportedPattern("uses a lookahead inside a lookahead")
        (excluded if look.negative else required).append(_either([_padded(i) for i in followed]))
    return Language(tuple(required), tuple(excluded))


def _padded(case: _Case) -> Tree:
    parts = [case.body]
    if not case.start:
        parts.insert(0, ANYTHING)
    if not case.end:
        parts.append(ANYTHING)
    return parts[0] if len(parts) == 1 else Concat(tuple(parts))


def _either(options: list[Tree]) -> Tree:
    return options[0] if len(options) == 1 else Either(tuple(options))


def has_anchor(tree: Tree) -> bool:
    match tree:
        case Anchor() | Lookaround():
            return True
        case Concat(parts):
            return any(map(has_anchor, parts))
        case Either(options):
            return any(map(has_anchor, options))
        case Repeat(body):
            return has_anchor(body)
    return False


def nullable(tree: Tree) -> bool:
    """Whether the tree, which has no anchors, matches the empty string."""
    match tree:
        case Concat(parts):
            return all(map(nullable, parts))
        case Either(options):
            return any(map(nullable, options))
        case Repeat(body, least):
            return least == 0 or nullable(body)
    return False


def lengths(tree: Tree) -> tuple[int, int | None]:
    """Fewest and most characters that the tree, which has no anchors, matches; None: no most."""
    match tree:
        case Chars():
            return 1, 1
        case Concat(parts):
            bounds = [lengths(part) for part in parts]
            return sum(low for low, _ in bounds), _total([high for _, high in bounds])
        case Either(options):
            bounds = [lengths(option) for option in options]
            highs = [high for _, high in bounds if high is not None]
            most = max(highs, default=0) if len(highs) == len(bounds) else None
            return min((low for low, _ in bounds), default=0), most
        case Repeat(body, least, most):
            low, high = lengths(body)
            if most is None or high is None:
                return low * least, 0 if high == 0 or most == 0 else None
            return low * least, high * most
    raise AssertionError(tree)


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def language_lengths(languages: tuple[Language, ...]) -> tuple[int, int | None]:
    """Bounds for the strings of at least one of the languages. Not always the closest ones."""
    bounds = [
        lengths(language.required[0] if language.required else ANYTHING) for language in languages
    ]
    highs = [high for _, high in bounds if high is not None]
    most = max(highs, default=0) if len(highs) == len(bounds) else None
    return min((low for low, _ in bounds), default=0), most


def _cases(tree: Tree) -> list[_Case]:
    if not has_anchor(tree):
        return [_Case(False, tree, False)]
    match tree:
        case Anchor(end):
            return [_Case(not end, EMPTY, end)]
        case Lookaround():
            return [_Case(False, EMPTY, False, (tree,))]
        case Either(options):
            return _limited([case for option in options for case in _cases(option)])
        case Repeat(body, least, most):
            # An anchored body cannot match twice in a row, unless it is empty.
            once = _cases(body) if most != 0 else []
            return once if least else [*once, _Case(False, EMPTY, False)]
        case Concat(parts):
            joined = [_Case(False, EMPTY, False)]
            for part in parts:
                joined = _limited([c for a in joined for b in _cases(part) if (c := _join(a, b))])
            return joined
    raise AssertionError(tree)


def _limited(cases: list[_Case]) -> list[_Case]:
    if len(cases) > _MAX_CASES:
        raise UnsupportedPattern("has too many alternatives with anchors")
    return cases


def _join(a: _Case, b: _Case) -> _Case | None:
    """One after the other; None if that can never match."""
    if a.end and not nullable(b.body):
        return None
    if b.start and not nullable(a.body):
        return None
    if b.looks and not (a.start and a.body == EMPTY):
        if a.body != EMPTY:
            raise UnsupportedPattern(
                "uses a lookahead that does not stand at the start of the string"
            )
        a = _Case(a.start, EMPTY, a.end, a.looks)
    left = EMPTY if b.start else a.body
    right = EMPTY if a.end else b.body
    body = right if left == EMPTY else left if right == EMPTY else Concat((left, right))
    return _Case(a.start or b.start, body, a.end or b.end, a.looks + b.looks)
