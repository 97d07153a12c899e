"""Incremental reading of the text of one choice: the one matcher of all formats.

A format is a generator (`Steps`) over a `Scanner`. It yields the parts that are complete, and None
where it needs more text, so that it reads like a parser of the whole text:

    def steps(scan, calls):
        while (yield from scan.pass_until(BEGIN, Content)):
            name, _ = yield from scan.take_until(SEPARATOR)
            yield calls.start(name)
            ...

Every decision waits until no further text can change it. The parts are therefore the same wherever
the text is cut, and only text that may still be part of a marker is held back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import msgspec

from galley.chat.parts import Part, Reasoning
from galley.chat.reasoning_count import ReasoningCount
from galley.request import SamplingParams

T = TypeVar("T")
Steps = Generator[Part | None, None, T]
Emit = Callable[[str], Part]

#: Outside of strings: what opens or closes something, and characters that JSON cannot have there.
_STRUCTURE = re.compile(r"""["{}\[\]]|[^\w\s,:.+'-]""")
_IN_STRING = re.compile(r'["\\]')
_IN_QUOTES = re.compile(r"""["'\\]""")
_EXPRESSION = re.compile(r"""["'()\[\]{},]""")
_SCALAR_END = re.compile(r"[^\w.+-]")
_NOT_SPACE = re.compile(r"\S")
_NOT_WORD = re.compile(r"[^\w.-]")


#: Longest name of a function: an attempt to read one is over after so many characters.
MAX_NAME = 256


class Mismatch(Exception):
    """The text is not what the format expects here, or it has ended."""


class Markers:
    """Texts that are searched together. None may be the beginning of another one.

    Attributes:
        longest: length of the longest one.
    """

    def __init__(self, *texts: str) -> None:
        assert all(texts), "a marker is not empty"
        assert not any(a != b and b.startswith(a) for a in texts for b in texts)
        self.texts = texts
        self._pattern = re.compile("|".join(map(re.escape, texts)))
        self._beginnings = {text[:n] for text in texts for n in range(1, len(text))}
        self.longest = max(map(len, texts))

    def find(self, text: str, start: int, ended: bool) -> tuple[int, str]:
        """(place, marker) of the first marker in `text` from `start` on.

        Without one, (place, "") of the first character that may still be part of one.
        """
        found = self._pattern.search(text, start)
        place = found.start() if found else len(text)
        if not ended:
            for begin in range(max(start, len(text) - self.longest + 1), place):
                if text[begin:] in self._beginnings:
                    return begin, ""
        return place, found[0] if found else ""


class Scanner:
    """The text of a choice: what has come and has not been read yet."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self._ended = False
        self._fed = 0

    def feed(self, text: str) -> None:
        """More text has come."""
        self._fed += len(text.encode())
        read = self._at if self._mark is None else min(self._at, self._mark)
        self._text = self._text[read:] + text
        self._at -= read
        if self._mark is not None:
            self._mark -= read

    def end(self) -> None:
        """No more text will come."""
        self._ended = True

    @property
    def place(self) -> int:
        """The number of bytes that have been read."""
        return self._fed - len(self._text[self._at :].encode())

    @property
    def settled(self) -> int:
        """The number of bytes that have been read and that `rewind` does not unread."""
        at = self._at if self._mark is None else min(self._at, self._mark)
        return self._fed - len(self._text[at:].encode())

    # ------------------------------------------------------------------ attempts

    def mark(self) -> None:
        """Remember this place for `rewind`."""
        self._mark = self._at

    def back(self, length: int) -> None:
        """Unread the last characters."""
        self._at -= length
        assert self._at >= 0, "what has been passed on is not unread"

    def rewind(self) -> None:
        """Go back to the mark."""
        assert self._mark is not None, "mark() comes first"
        self._at, self._mark = self._mark, None

    def commit(self) -> None:
        """Forget the mark."""
        self._mark = None

    @property
    def committed(self) -> bool:
        return self._mark is None

    # ------------------------------------------------------------------ single texts

    def peek(self) -> Steps[str]:
        """The next character; "" at the end."""
        while self._at >= len(self._text):
            if self._ended:
                return ""
            yield None
        return self._text[self._at]

    def accept(self, text: str) -> Steps[bool]:
        """Whether `text` comes next; it is read if it does."""
        while True:
            here = self._text[self._at : self._at + len(text)]
            if here == text:
                self._at += len(text)
                return True
            if self._ended or not text.startswith(here):
                return False
            yield None

    def expect(self, text: str) -> Steps[None]:
        """Read `text`. Raises Mismatch where it does not come next."""
        if not (yield from self.accept(text)):
            raise Mismatch

    def spaces(self) -> Steps[None]:
        """Read white space."""
        while True:
            found = _NOT_SPACE.search(self._text, self._at)
            if found:
                self._at = found.start()
                return
            self._at = len(self._text)
            if self._ended:
                return
            yield None

    def word(self) -> Steps[str]:
        """Read letters, digits, underscores, dots and hyphens; "" where none come."""
        start = 0
        while True:
            found = _NOT_WORD.search(self._text, self._at + start)
            if found or self._ended:
                end = found.start() if found else len(self._text)
                text, self._at = self._text[self._at : end], end
                return text
            start = len(self._text) - self._at
            yield None

    # ------------------------------------------------------------------ up to markers

    def pass_until(self, markers: Markers, emit: Emit, end: bool = True) -> Steps[str]:
        """Emit the text up to the first of `markers`; the marker is read and returned.

        At the end of the text "" is returned or, without `end`, Mismatch raised.
        """
        while True:
            place, marker = markers.find(self._text, self._at, self._ended)
            if place > self._at:
                text, self._at = self._text[self._at : place], place
                yield emit(text)
            if marker:
                self._at += len(marker)
                return marker
            if self._ended:
                if not end:
                    raise Mismatch
                return ""
            yield None

    def pass_rest(self, emit: Emit) -> Steps[None]:
        """Emit all text that is left."""
        while True:
            if self._at < len(self._text):
                text, self._at = self._text[self._at :], len(self._text)
                yield emit(text)
            if self._ended:
                return
            yield None

    def take_name(self, markers: Markers) -> Steps[tuple[str, str]]:
        """As `take_until`; raises Mismatch for more than `MAX_NAME` characters, too."""
        most = MAX_NAME + markers.longest
        while True:
            window = self._text[self._at : self._at + most]
            complete = self._ended or len(window) == most
            place, marker = markers.find(window, 0, complete)
            if marker and place <= MAX_NAME:
                self._at += place + len(marker)
                return window[:place], marker
            if complete:
                raise Mismatch
            yield None

    def take_until(self, markers: Markers) -> Steps[tuple[str, str]]:
        """(text up to the first of `markers`, the marker); both are read.

        Raises Mismatch where the text ends before, which reads all of it.
        """
        seen = 0
        while True:
            place, marker = markers.find(self._text, self._at + seen, self._ended)
            if marker:
                text, self._at = self._text[self._at : place], place + len(marker)
                return text, marker
            if self._ended:
                self._at = len(self._text)
                raise Mismatch
            seen = place - self._at
            yield None

    # ------------------------------------------------------------------ JSON

    def json_string(self) -> Steps[str]:
        """Read a string literal; returns what it means. Raises Mismatch for anything else."""
        yield from self.expect('"')
        pieces: list[str] = []
        yield from self._string_body(pieces.append)
        try:
            return str(msgspec.json.decode('"' + "".join(pieces)))
        except msgspec.DecodeError:
            raise Mismatch from None

    def json_value(self, emit: Emit) -> Steps[None]:
        """Emit the text of a JSON value as it comes.

        Its end is found by its brackets; a character that cannot be in JSON ends it too.

        Raises Mismatch where no value comes, or the text ends inside one.
        """
        first = yield from self.peek()
        if first == '"':
            self._at += 1
            yield emit('"')
            yield from self._emitted_string(emit)
        elif first and first in "{[":
            yield from self._brackets(emit)
        elif first and (first.isalnum() or first == "-"):
            yield from self._scalar(emit)
        else:
            raise Mismatch

    def json_text(self) -> Steps[str]:
        """The text of a JSON value, once it is complete. Raises Mismatch as `json_value`."""
        pieces: list[str] = []
        for step in self.json_value(_Collected):  # type: ignore[arg-type]
            if step is None:
                yield None
            else:
                assert isinstance(step, _Collected)
                pieces.append(step.text)
        return "".join(pieces)

    def json_before(self, ends: Markers) -> Steps[str | None]:
        """The text of a JSON text, array or object that one of `ends` follows, which is read too.

        None where none comes; then nothing has been read. The mark is forgotten.
        """
        if (yield from self.peek()) not in ('"', "[", "{"):
            return None
        self.mark()
        try:
            text = yield from self.json_text()
            yield from self.spaces()
            for end in ends.texts:
                if (yield from self.accept(end)):
                    self.commit()
                    return text
        except Mismatch:
            pass
        self.rewind()
        return None

    def _scalar(self, emit: Emit) -> Steps[None]:
        while True:
            found = _SCALAR_END.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            if end > self._at:
                text, self._at = self._text[self._at : end], end
                yield emit(text)
            if found or self._ended:
                return
            yield None

    def _brackets(self, emit: Emit) -> Steps[None]:
        depth = 0
        start = look = self._at
        while True:
            found = _STRUCTURE.search(self._text, look)
            char = found[0] if found else ""
            look = found.start() if found else len(self._text)
            if char and char in "{[":
                depth += 1
                look += 1
            elif char and char in "}]":
                depth -= 1
                look += 1
            elif char == '"':
                look += 1
            if char and char in "{}[]" and depth:
                continue
            if look > start:
                text, self._at = self._text[start:look], look
                yield emit(text)
            if char == '"':
                yield from self._emitted_string(emit)
            elif char:
                return
            elif self._ended:
                raise Mismatch
            else:
                yield None
            start = look = self._at

    def _emitted_string(self, emit: Emit) -> Steps[None]:
        """The rest of a string literal, its closing quote included, as it comes."""
        pieces: list[str] = []
        body = self._string_body(pieces.append)
        while True:
            try:
                next(body)
                ended = False
            except StopIteration:
                ended = True
            if pieces:
                yield emit("".join(pieces))
                pieces.clear()
            if ended:
                return
            yield None

    def _string_body(self, put: Callable[[str], object]) -> Generator[None, None, None]:
        while True:
            found = _IN_STRING.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            if found is None:
                put(self._text[self._at : end])
                self._at = end
            elif found[0] == '"':
                put(self._text[self._at : end + 1])
                self._at = end + 1
                return
            else:
                put(self._text[self._at : end])
                self._at = end
                if end + 1 < len(self._text):
                    put(self._text[end : end + 2])
                    self._at = end + 2
                    continue
            if self._ended:
                put(self._text[self._at :])
                self._at = len(self._text)
                raise Mismatch
            yield None

    # ------------------------------------------------------------------ Python

    def python_value(self, ends: str) -> Steps[str]:
        """The text of a Python expression up to one of the characters `ends`, which is not read.

        Raises Mismatch where the text ends before, which reads all of it.
        """
        look, depth, quote = self._at, 0, ""
        while True:
            found = (_IN_QUOTES if quote else _EXPRESSION).search(self._text, look)
            if found is None or (found[0] == "\\" and found.end() == len(self._text)):
                look = (found.start() if found else len(self._text)) - self._at
                if self._ended:
                    self._at = len(self._text)
                    raise Mismatch
                yield None
                look += self._at
                continue
            char, look = found[0], found.end()
            if quote:
                if char == "\\":
                    look += 1
                elif char == quote:
                    quote = ""
            elif not depth and char in ends:
                text, self._at = self._text[self._at : look - 1], look - 1
                return text
            elif char in "\"'":
                quote = char
            elif char in "([{":
                depth += 1
            elif char in ")]}":
                depth -= 1


class _Collected:
    """Stands for a part where a value is collected."""

    def __init__(self, text: str) -> None:
        self.text = text


class ScanningParser:
    """The `AssistantParser` of a format.

    Args:
        format: makes the generator that reads the text.
        special: the format's markers may be special tokens.
        count: counts tokens of reasoning.
    """

    def __init__(
        self,
        format: Callable[[Scanner], Steps[None]],
        special: bool = True,
        count: ReasoningCount | None = None,
    ) -> None:
        self._scanner = Scanner()
        self._steps = format(self._scanner)
        self._special = special
        self._count = count

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self._count is None else self._count.tokens

    def adjust(self, params: SamplingParams) -> SamplingParams:
        """Markers that are special tokens must be in the text."""
        if not self._special:
            return params
        return msgspec.structs.replace(params, skip_special_tokens=False)

    def push(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        self._scanner.feed(text)
        parts = self._ready()
        if self._count is not None:
            self._count.take(token_ids)
            self._count.settle(self._scanner.settled)
        return parts

    def finish(self) -> list[Part]:
        self._scanner.end()
        parts = self._ready()
        if self._count is not None:
            self._count.settle(None)
        return parts

    def _ready(self) -> list[Part]:
        parts: list[Part] = []
        for part in self._steps:
            if part is None:
                break
            parts.append(part)
            if self._count is not None and isinstance(part, Reasoning):
                place = self._scanner.place
                self._count.reasoning(place - len(part.text.encode()), place)
        return parts
