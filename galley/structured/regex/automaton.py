"""Deterministic automata of regular languages: complement, intersection, finite lists."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from galley.structured.regex import charset
from galley.structured.regex.anchors import ANYTHING, Language
from galley.structured.regex.syntax import EMPTY, Chars, Concat, Either, Repeat, Tree
from galley.structured.regex.text import render

#: Most states of an automaton, before and after it is made deterministic.
MAX_STATES = 3_000
#: Automata with more states stay as they are: making them minimal takes time in the square.
_MINIMISED = 300


class TooManyStates(ValueError):
    """The automaton would exceed MAX_STATES."""


class _Nfa:
    """Thompson's construction. States are integers; `empty` moves need no character."""

    def __init__(self) -> None:
        self.empty: list[list[int]] = []
        self.moves: list[list[tuple[charset.Charset, int]]] = []

    def state(self) -> int:
        if len(self.empty) >= 4 * MAX_STATES:
            raise TooManyStates
        self.empty.append([])
        self.moves.append([])
        return len(self.empty) - 1

    def add(self, tree: Tree, start: int) -> int:
        """Add the tree from `start` on. Returns its end."""
        match tree:
            case Chars(ranges):
                end = self.state()
                self.moves[start].append((ranges, end))
                return end
            case Concat(parts):
                for part in parts:
                    start = self.add(part, start)
                return start
            case Either(options):
                end = self.state()
                for option in options:
                    self.empty[self.add(option, start)].append(end)
                return end
            case Repeat(body, least, most):
                return self._repeat(body, least, most, start)
        raise AssertionError(tree)

    def _repeat(self, body: Tree, least: int, most: int | None, start: int) -> int:
        for _ in range(least):
            start = self.add(body, start)
        end = self.state()
        if most is None:
            loop = self.state()
            self.empty[start].append(loop)
            self.empty[self.add(body, loop)].append(loop)
            self.empty[loop].append(end)
            return end
        self.empty[start].append(end)
        for _ in range(most - least):
            start = self.add(body, start)
            self.empty[start].append(end)
        return end

    def closure(self, states: list[int]) -> frozenset[int]:
        seen = set(states)
        while states:
            for target in self.empty[states.pop()]:
                if target not in seen:
                    seen.add(target)
                    states.append(target)
        return frozenset(seen)


class Automaton:
    """A complete automaton, minimal unless it is large. State 0 is the start.

    Attributes:
        bounds: first code point of each class of characters that are never told apart.
        table: for each state, the next state by class.
        accepting: for each state, whether a string may end there.
    """

    def __init__(self, bounds: list[int], table: list[list[int]], accepting: list[bool]) -> None:
        self.bounds = bounds
        if len(table) <= _MINIMISED:
            table, accepting = _minimal(table, accepting)
        self.table, self.accepting = table, accepting

    @classmethod
    def of(cls, tree: Tree) -> Automaton:
        """The automaton of a tree without anchors.

        Raises:
            TooManyStates
        """
        nfa = _Nfa()
        start = nfa.state()
        final = nfa.add(tree, start)
        points = {0}
        for moves in nfa.moves:
            for ranges, _ in moves:
                for low, high in ranges:
                    points.update((low, high + 1))
        bounds = sorted(point for point in points if point <= 0x10FFFF)
        index = {nfa.closure([start]): 0}
        order = list(index)
        table: list[list[int]] = []
        for states in order:
            targets: list[list[int]] = [[] for _ in bounds]
            for state in states:
                for ranges, target in nfa.moves[state]:
                    for low, high in ranges:
                        first = bisect_right(bounds, low) - 1
                        for cell in range(first, bisect_right(bounds, high)):
                            targets[cell].append(target)
            row = []
            known: dict[tuple[int, ...], int] = {}
            for found in targets:
                key = tuple(found)
                if key not in known:
                    closed = nfa.closure(list(key))
                    if closed not in index:
                        index[closed] = len(order)
                        order.append(closed)
                        if len(order) > MAX_STATES:
                            raise TooManyStates
                    known[key] = index[closed]
                row.append(known[key])
            table.append(row)
        return cls(bounds, table, [final in states for states in order])

    @classmethod
    def of_languages(cls, languages: tuple[Language, ...]) -> Automaton:
        """Strings of at least one of the languages. Raises TooManyStates."""
        union: Automaton | None = None
        for language in languages:
            found = cls.of(language.required[0] if language.required else ANYTHING)
            for tree in language.required[1:]:
                found = found.intersection(cls.of(tree))
            for tree in language.excluded:
                found = found.intersection(cls.of(tree).complement())
            # Neither of them is not in the union.
            union = (
                found
                if union is None
                else union.complement().intersection(found.complement()).complement()
            )
        return union if union is not None else cls.of(Chars(()))

    def complement(self) -> Automaton:
        return Automaton(self.bounds, self.table, [not end for end in self.accepting])

    def intersection(self, other: Automaton) -> Automaton:
        """Strings of both. Raises TooManyStates."""
        bounds = sorted({*self.bounds, *other.bounds})
        mine = [bisect_right(self.bounds, point) - 1 for point in bounds]
        theirs = [bisect_right(other.bounds, point) - 1 for point in bounds]
        order = [(0, 0)]
        index = {(0, 0): 0}
        table = []
        for a, b in order:
            row = []
            for i, j in zip(mine, theirs, strict=True):
                pair = (self.table[a][i], other.table[b][j])
                if pair not in index:
                    index[pair] = len(order)
                    order.append(pair)
                    if len(order) > MAX_STATES:
                        raise TooManyStates
                row.append(index[pair])
            table.append(row)
        accepting = [self.accepting[a] and other.accepting[b] for a, b in order]
        return Automaton(bounds, table, accepting)

    def matches(self, text: str) -> bool:
        state = 0
        for character in text:
            state = self.table[state][bisect_right(self.bounds, ord(character)) - 1]
        return self.accepting[state]

    @property
    def empty(self) -> bool:
        return not any(self.accepting)

    def _live(self) -> list[bool]:
        """For each state, whether an accepting one can be reached."""
        live = list(self.accepting)
        changed = True
        while changed:
            changed = False
            for state, row in enumerate(self.table):
                if not live[state] and any(live[target] for target in row):
                    live[state] = changed = True
        return live

    def strings(self, limit: int) -> list[str] | None:
        """Every string of the language, or None if there are more than `limit`."""
        live = self._live()
        found: list[str] = []
        stack = [(0, "", frozenset([0]))] if live[0] else []
        while stack:
            state, text, path = stack.pop()
            if self.accepting[state]:
                found.append(text)
                if len(found) > limit:
                    return None
            for cell, target in enumerate(self.table[state]):
                if not live[target]:
                    continue
                low, high = self._cell(cell)
                if target in path or high - low >= limit:
                    return None
                for code in range(low, high + 1):
                    stack.append((target, text + chr(code), path | {target}))
            if len(stack) > 4 * limit:
                return None
        return sorted(found)

    def _cell(self, cell: int) -> tuple[int, int]:
        last = self.bounds[cell + 1] - 1 if cell + 1 < len(self.bounds) else 0x10FFFF
        return self.bounds[cell], last

    def tree(self, limit: int = 150) -> Tree:
        """A tree of the language, by elimination of states.

        Raises:
            TooManyStates: more than `limit` states, or a tree of more than 20,000 nodes.
        """
        live = self._live()
        names = [state for state, alive in enumerate(live) if alive]
        if len(names) > limit:
            raise TooManyStates
        if not live[0]:
            return Chars(())
        start, end = -1, -2
        edges: dict[tuple[int, int], Tree] = {(start, 0): EMPTY}
        for state in names:
            grouped: dict[int, list[tuple[int, int]]] = {}
            for cell, target in enumerate(self.table[state]):
                if live[target]:
                    grouped.setdefault(target, []).append(self._cell(cell))
            for target, ranges in grouped.items():
                if chars := charset.normal(ranges):
                    edges[state, target] = Chars(chars)
            if self.accepting[state]:
                edges[state, end] = EMPTY
        while names:
            degree = Counter(end for edge in edges for end in edge)
            state = min(names, key=degree.__getitem__)
            names.remove(state)
            _eliminate(edges, state)
        return edges.get((start, end), Chars(()))


def other_than(words: Iterable[str]) -> Tree:
    """A tree of every string that is none of the words."""
    return _other_than(sorted(set(words)), 0)


def _other_than(words: list[str], at: int) -> Tree:
    """Characters that may follow the first `at`, which the words share."""
    options: list[Tree] = [] if len(words[0]) == at else [EMPTY]
    longer = [word for word in words if len(word) > at]
    groups = [(key, list(group)) for key, group in groupby(longer, key=lambda word: word[at])]
    for character, group in groups:
        code = ord(character)
        options.append(Concat((Chars(((code, code),)), _other_than(group, at + 1))))
    first = charset.normal((ord(character), ord(character)) for character, _ in groups)
    options.append(Concat((Chars(charset.complement(first)), ANYTHING)))
    return Either(tuple(options))


def _eliminate(edges: dict[tuple[int, int], Tree], state: int) -> None:
    loop = edges.pop((state, state), None)
    into = [(a, t) for (a, b), t in edges.items() if b == state]
    out = [(b, t) for (a, b), t in edges.items() if a == state]
    for edge in [edge for edge in edges if state in edge]:
        del edges[edge]
    for a, first in into:
        for b, last in out:
            middle = (Repeat(loop, 0, None),) if loop is not None else ()
            parts = tuple(part for part in (first, *middle, last) if part != EMPTY)
            path: Tree = parts[0] if len(parts) == 1 else Concat(parts)
            known = edges.get((a, b))
            edges[a, b] = path if known is None else Either((known, path))
            if _size(edges[a, b]) > 20_000:
                raise TooManyStates


def _size(tree: Tree) -> int:
    match tree:
        case Concat(parts):
            return 1 + sum(map(_size, parts))
        case Either(options):
            return 1 + sum(map(_size, options))
        case Repeat(body):
            return 1 + _size(body)
    return 1


def _minimal(table: list[list[int]], accepting: list[bool]) -> tuple[list[list[int]], list[bool]]:
    """Merge states that no string tells apart (Moore's algorithm)."""
    group = [int(end) for end in accepting]
    while True:
        keys: dict[tuple[int, ...], int] = {}
        refined = []
        for state, row in enumerate(table):
            key = (group[state], *(group[target] for target in row))
            refined.append(keys.setdefault(key, len(keys)))
        if len(keys) == len(set(group)):
            break
        group = refined
    # The start is state 0, as it is first in the order of `keys`.
    first: dict[int, int] = {}
    for state, name in enumerate(refined):
        first.setdefault(name, state)
    order = sorted(first)
    return [[refined[t] for t in table[first[n]]] for n in order], [
        accepting[first[n]] for n in order
    ]


def pattern_of(languages: tuple[Language, ...]) -> str:
    """One pattern for strings of at least one of the languages, as `text.render` writes it.

    Raises:
        TooManyStates
    """
    if all(len(language.required) == 1 and not language.excluded for language in languages):
        trees = tuple(language.required[0] for language in languages)
        return render(trees[0] if len(trees) == 1 else Either(trees))
    return render(Automaton.of_languages(languages).tree())
