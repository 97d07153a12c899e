"""Calls as Python writes them: `[get_weather(city="Paris", days=3), now()]`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from galley.chat.parts import Content
from galley.chat.scanner import Markers, Mismatch, Scanner, Steps
from galley.chat.tool_parsers.calls import CallWriter, pass_end, pass_separator
from galley.chat.tool_parsers.values import from_python


@dataclass(frozen=True)
class PythonCalls:
    """Calls with keyword arguments, in a list or one a line.

    Attributes:
        begin: markers before the calls, which the model may omit: then the text must begin with
            `[` and the name of a tool.
        end: markers after them, which the model may omit.
        bare: whether calls without a marker are read.
    """

    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    bare: bool = True
    special: bool = True
    _markers: Markers | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_markers", Markers(*self.begin) if self.begin else None)

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        if self.bare:
            scan.mark()
            yield from scan.spaces()
            if (yield from scan.peek()) != "[" or not (yield from self._calls(scan, calls, True)):
                scan.rewind()
            scan.commit()
        while True:
            if self._markers is None:
                yield from scan.pass_rest(Content)
                return
            marker = yield from scan.pass_until(self._markers, Content)
            if not marker:
                return
            scan.mark()
            if not (yield from self._calls(scan, calls, False)):
                scan.rewind()
                yield Content(marker)

    def _calls(self, scan: Scanner, calls: CallWriter, known: bool) -> Steps[bool]:
        """Read one or more calls and the end marker; False without a call."""
        found = listed = False
        try:
            yield from scan.spaces()
            listed = yield from scan.accept("[")
            while True:
                yield from scan.spaces()
                yield from self._call(scan, calls, known)
                found = True
                first = yield from pass_separator(scan)
                if not (first.isalpha() or first == "_"):
                    scan.rewind()
                    break
                if known and not listed:
                    break
        except Mismatch:
            if not scan.committed:
                if not found:
                    return False
                scan.rewind()
            found = True
        scan.commit()
        yield from pass_end(scan, listed, self.end)
        return found

    def _call(self, scan: Scanner, calls: CallWriter, known: bool) -> Steps[None]:
        name = yield from scan.word()
        yield from scan.expect("(")
        if not name or (known and not calls.knows(name)):
            raise Mismatch
        scan.commit()
        yield calls.start(name)
        yield calls.arguments("{")
        first = True
        yield from scan.spaces()
        while not (yield from scan.accept(")")):
            if not first:
                yield from scan.expect(",")
                yield from scan.spaces()
                if (yield from scan.accept(")")):
                    break
            key = yield from scan.word()
            yield from scan.spaces()
            yield from scan.expect("=")
            value = yield from scan.python_value(",)")
            text = f"{json.dumps(key)}: {from_python(value)}"
            yield calls.arguments(text if first else f", {text}")
            first = False
        yield calls.arguments("}")
