"""Calls of the Gemma family: `call:get_weather{city:<|"|>Paris<|"|>,days:3}`.

Keys have no quotes and texts have their own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import msgspec

from galley.chat.parts import Content
from galley.chat.scanner import Markers, Mismatch, Scanner, Steps
from galley.chat.tool_parsers.calls import CallWriter
from galley.chat.tool_parsers.values import string_piece

_NAME_END = Markers("{")


@dataclass(frozen=True)
class GemmaCalls:
    """Calls as `BEGIN call:name{key:value,…} END`.

    Attributes:
        begin, end: markers around a call; the model may omit the second.
        quote: on both sides of a text.
    """

    begin: str
    end: str
    quote: str
    special: bool = True
    _begin: Markers = field(init=False, repr=False, compare=False)
    _quote: Markers = field(init=False, repr=False, compare=False)
    _marks: Markers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_begin", Markers(self.begin))
        object.__setattr__(self, "_quote", Markers(self.quote))
        object.__setattr__(self, "_marks", Markers(self.quote, *"{}[],:"))

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        while True:
            marker = yield from scan.pass_until(self._begin, Content)
            if not marker:
                return
            scan.mark()
            try:
                yield from scan.expect("call:")
                name, _ = yield from scan.take_name(_NAME_END)
                scan.commit()
                yield calls.start(name.strip())
                yield calls.arguments("{")
                yield from self._members(scan, calls)
            except Mismatch:
                if not scan.committed:
                    scan.rewind()
                    yield Content(marker)
            yield from scan.accept(self.end)

    def _members(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        """Text from the opening brace to the closing one, both excluded."""
        depth = 1
        while depth:
            text, mark = yield from scan.take_until(self._marks)
            text = text.strip()
            if mark == self.quote:
                yield calls.arguments('"')
                yield from scan.pass_until(
                    self._quote, lambda piece: calls.arguments(string_piece(piece)), end=False
                )
                yield calls.arguments('"')
            elif mark == ":":
                yield calls.arguments((json.dumps(text) if text else "") + ": ")
            else:
                depth += {"{": 1, "[": 1, ",": 0}.get(mark, -1)
                yield calls.arguments(_scalar(text) + (", " if mark == "," else mark))


def _scalar(text: str) -> str:
    if not text:
        return ""
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.dumps(text, ensure_ascii=False)
    return text
