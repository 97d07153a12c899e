"""Parser of regular expressions in the common part of Python's and ECMAScript's dialects."""

from __future__ import annotations

from dataclasses import dataclass

from galley.structured.regex import charset
from galley.structured.regex.charset import Charset

#: Longest pattern in characters, deepest nesting of groups, largest repetition count.
MAX_PATTERN = 20_000
MAX_DEPTH = 100
MAX_REPEAT = 65_535


class UnsupportedPattern(ValueError):
    """The pattern is not valid or uses what cannot be a grammar; the message names it."""


@dataclass(frozen=True)
class Chars:
    """One character of a set."""

    ranges: Charset


@dataclass(frozen=True)
class Concat:
    """The parts one after the other."""

    parts: tuple[Tree, ...]


@dataclass(frozen=True)
class Either:
    """One of the options."""

    options: tuple[Tree, ...]


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` repetitions; `most` None = any number."""

    body: Tree
    least: int
    most: int | None


@dataclass(frozen=True)
class Anchor:
    """Start of the string, or its end."""

    end: bool


@dataclass(frozen=True)
class Lookaround:
    """Lookahead: what follows starts with `body`, or does not."""

    body: Tree
    negative: bool


Tree = Chars | Concat | Either | Repeat | Anchor | Lookaround

EMPTY = Concat(())
_NEWLINE = Chars(((10, 10),))

# Class escapes: (agreed by both dialects, meant by at least one of them).
_CLASSES: dict[str, tuple[Charset, Charset]] = {
    "d": (charset.DIGIT, charset.complement(charset.NOT_DIGIT)),
    "D": (charset.NOT_DIGIT, charset.complement(charset.DIGIT)),
    "w": (charset.WORD, charset.complement(charset.NOT_WORD)),
    "W": (charset.NOT_WORD, charset.complement(charset.WORD)),
    "s": (charset.SPACE, charset.complement(charset.NOT_SPACE)),
    "S": (charset.NOT_SPACE, charset.complement(charset.SPACE)),
}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0, "a": 7}


def parse(pattern: str, *, generous: bool = False) -> Tree:
    """The tree of a pattern.

    Args:
        generous: whether it matches what any dialect matches, and not what all of them match.

    Raises:
        UnsupportedPattern: not valid, too large, or it uses a lookbehind, a back reference, a word
            boundary, an atomic group or a possessive quantifier.
    """
    if len(pattern) > MAX_PATTERN:
        raise UnsupportedPattern(f"is longer than {MAX_PATTERN} characters")
    parser = _Parser(pattern, generous)
    tree = parser.alternatives(0)
    if parser.at < len(pattern):
        raise UnsupportedPattern(f"has an unmatched ')' at position {parser.at}")
    return tree


class _Parser:
    def __init__(self, pattern: str, generous: bool) -> None:
        self.pattern = pattern
        self.generous = generous
        self.at = 0
        self.ignore_case = False
        self.dot_all = False

    def _peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def _take(self, text: str) -> bool:
        if self._peek(text):
            self.at += len(text)
            return True
        return False

    def _next(self, what: str) -> str:
        if self.at >= len(self.pattern):
            raise UnsupportedPattern(f"ends inside {what}")
        self.at += 1
        return self.pattern[self.at - 1]

    def alternatives(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise UnsupportedPattern(f"nests groups deeper than {MAX_DEPTH}")
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _sequence(self, depth: int) -> Tree:
        parts: list[Tree] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            atom = self._atom(depth)
            if atom is not None:
                parts.append(self._quantified(atom))
        return parts[0] if len(parts) == 1 else Concat(tuple(parts))

    def _quantified(self, atom: Tree) -> Tree:
        while True:
            bounds = self._quantifier()
            if bounds is None:
                return atom
            if isinstance(atom, Lookaround):
                raise UnsupportedPattern("repeats a lookahead")
            if self._peek("+"):
                raise UnsupportedPattern("uses a possessive quantifier")
            self._take("?")  # Lazy: the same strings match.
            atom = Repeat(atom, *bounds)

    def _quantifier(self) -> tuple[int, int | None] | None:
        for mark, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(mark):
                return bounds
        if not self._peek("{"):
            return None
        end = self.pattern.find("}", self.at)
        least, comma, most = self.pattern[self.at + 1 : max(end, 0)].partition(",")
        numbers = [text for text in (least, most) if text]
        if end < 0 or not numbers or not all(n.isascii() and n.isdigit() for n in numbers):
            return None  # A literal brace.
        self.at = end + 1
        if any(len(n) > 6 or int(n) > MAX_REPEAT for n in numbers):
            raise UnsupportedPattern(f"repeats more than {MAX_REPEAT} times")
        low = int(least or 0)
        high = low if not comma else int(most) if most else None
        if high is not None and high < low:
            raise UnsupportedPattern(
                f"has a repetition {{{least},{most}}} whose bounds are reversed"
            )
        return low, high

    def _atom(self, depth: int) -> Tree | None:
        start = self.at
        character = self._next("the pattern")
        if character == "(":
            return self._group(depth, start)
        if character == "[":
            return Chars(self._case(self._set()))
        if character == ".":
            dot = charset.PYTHON_DOT if self.generous else charset.DOT
            return Chars(charset.ALL if self.dot_all else dot)
        if character == "^":
            return Anchor(end=False)
        if character == "$":
            # Python's also stands before a newline at the end.
            end = Anchor(end=True)
            return Concat((Repeat(_NEWLINE, 0, 1), end)) if self.generous else end
        if character == "\\":
            return self._escape()
        if character in "*+?":
            raise UnsupportedPattern(f"has nothing to repeat at position {start}")
        return Chars(self._case(((ord(character),) * 2,)))

    def _case(self, ranges: Charset) -> Charset:
        ranges = charset.normal(ranges)
        return charset.both_cases(ranges) if self.ignore_case else ranges

    def _group(self, depth: int, start: int) -> Tree | None:
        for mark, name in (
            ("?<=", "a lookbehind"),
            ("?<!", "a lookbehind"),
            ("?P=", "a back reference"),
            ("?>", "an atomic group"),
            ("?(", "a conditional group"),
        ):
            if self._peek(mark):
                raise UnsupportedPattern(f"uses {name}, which no grammar can express")
        if self._take("?#"):
            self.at = self.pattern.find(")", self.at) + 1
            if not self.at:
                raise UnsupportedPattern("ends inside a comment")
            return None
        look = "=" if self._take("?=") else "!" if self._take("?!") else ""
        flags = (self.ignore_case, self.dot_all)
        if not look and not self._take("?:") and self._peek("?"):
            if self._peek("?P<") or self._peek("?<"):
                self.at = self.pattern.find(">", self.at) + 1
                if not self.at:
                    raise UnsupportedPattern("ends inside the name of a group")
            elif self._flags():
                return None
        if look == "!":
            self.generous = not self.generous
        body = self.alternatives(depth + 1)
        if look == "!":
            self.generous = not self.generous
        if not self._take(")"):
            raise UnsupportedPattern(f"has an unclosed group at position {start}")
        self.ignore_case, self.dot_all = flags
        return Lookaround(body, look == "!") if look else body

    def _flags(self) -> bool:
        """Read `?flags` of a group. True if the group only sets flags."""
        self.at += 1
        on = True
        while True:
            flag = self._next("a group's flags")
            if flag in ":)":
                return flag == ")"
            if flag == "-":
                on = False
            elif flag == "i":
                self.ignore_case = on
            elif flag == "s":
                self.dot_all = on
            elif flag not in "ua":
                raise UnsupportedPattern(f"uses the flag {flag!r}")

    def _escape(self) -> Tree:
        kind = self.pattern[self.at : self.at + 1]
        if kind in ("b", "B"):
            raise UnsupportedPattern(
                f"uses a word boundary (\\{kind}), which no grammar can express"
            )
        if kind and (kind in "123456789" or self._peek("k<")):
            raise UnsupportedPattern("uses a back reference, which no grammar can express")
        if kind and kind in "AZz":
            self.at += 1
            return Anchor(end=kind != "A")
        return Chars(self._case(self._escaped()[self.generous]))

    def _escaped(self) -> tuple[Charset, Charset]:
        """The set of an escape after its backslash: (in both dialects, in at least one)."""
        kind = self._next("an escape")
        if kind in _CLASSES:
            return _CLASSES[kind]
        if kind in "pP":
            ranges = self._property()
            if kind == "P":
                ranges = charset.complement(ranges)
            return ranges, ranges
        code = self._code(kind)
        return ((code, code),), ((code, code),)

    def _property(self) -> Charset:
        name = self._next("a property")
        if name == "{":
            end = self.pattern.find("}", self.at)
            if end < 0:
                raise UnsupportedPattern("ends inside a property")
            name, self.at = self.pattern[self.at : end], end + 1
        short = {"Letter": "L", "Number": "N", "Punctuation": "P", "Symbol": "S"}
        name = name.removeprefix("General_Category=").removeprefix("gc=")
        name = short.get(name, name)
        ranges = charset.category(name) if len(name) <= 2 else ()
        if not ranges:
            raise UnsupportedPattern(f"uses the Unicode property {name!r}, which is not supported")
        return ranges

    def _code(self, kind: str) -> int:
        """The character of an escape."""
        if kind in _CONTROLS:
            return _CONTROLS[kind]
        if kind == "c":
            return ord(self._next("a control escape")) % 32
        if kind in "ux" and self._take("{"):
            end = self.pattern.find("}", self.at)
            digits, self.at = self.pattern[self.at : max(end, self.at)], end + 1
        elif kind in ("x", "u", "U"):
            size = {"x": 2, "u": 4, "U": 8}[kind]
            digits = self.pattern[self.at : self.at + size]
            self.at += size
            if len(digits) < size:
                raise UnsupportedPattern("ends inside an escape")
        elif kind.isascii() and kind.isalnum():
            raise UnsupportedPattern(f"uses the unknown escape \\{kind}")
        else:
            return ord(kind)
        try:
            code = int(digits, 16)
            if 0xD800 <= code < 0xDC00 and self._take("\\u"):
                low = int(self.pattern[self.at : self.at + 4], 16)
                self.at += 4
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
            chr(code)
        except (ValueError, OverflowError):
            raise UnsupportedPattern(f"has the malformed escape \\{kind}{digits}") from None
        return code

    def _set(self) -> Charset:
        negative = self._take("^")
        agreed: list[Charset] = []
        meant: list[Charset] = []
        first = True
        while first or not self._take("]"):
            if first and self._peek("]"):
                raise UnsupportedPattern("has an empty set [] or a ']' first in a set; escape it")
            first = False
            low = self._set_item()
            if self._peek("-") and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                low = self._range(low, self._set_item())
            agreed.append(low[0])
            meant.append(low[1])
        # All dialects match a character that none of them excludes.
        chosen = charset.union(*(meant if self.generous != negative else agreed))
        if not negative:
            return chosen
        return charset.complement(charset.both_cases(chosen) if self.ignore_case else chosen)

    def _set_item(self) -> tuple[Charset, Charset]:
        character = self._next("a set")
        if character != "\\":
            ranges = ((ord(character), ord(character)),)
            return ranges, ranges
        if self._take("b"):
            return ((8, 8),), ((8, 8),)
        return self._escaped()

    @staticmethod
    def _range(
        low: tuple[Charset, Charset], high: tuple[Charset, Charset]
    ) -> tuple[Charset, Charset]:
        ends = (low[0], high[0])
        if any(len(end) != 1 or end[0][0] != end[0][1] for end in ends):
            raise UnsupportedPattern("has a range whose end is not one character")
        first, last = low[0][0][0], high[0][0][0]
        if first > last:
            raise UnsupportedPattern(f"has the reversed range {chr(first)}-{chr(last)}")
        return ((first, last),), ((first, last),)
