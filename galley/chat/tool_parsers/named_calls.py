"""Calls as a name, a separator, and the arguments' JSON, all between markers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from galley.chat.parts import Content
from galley.chat.scanner import Markers, Mismatch, Scanner, Steps
from galley.chat.tool_parsers.calls import CallWriter, pass_to_call
from galley.chat.tool_parsers.json_calls import JsonCalls, read_arguments


def _same(text: str) -> tuple[str, str | None]:
    return text, None


@dataclass(frozen=True)
class NamedCalls:
    """Calls as `BEGIN name SEPARATOR {…} END`.

    Attributes:
        begin: marker before a call.
        separators: markers between name and arguments.
        end: texts after the arguments, in this order, which the model may omit.
        noise: markers around the calls of an answer, which are no content.
        skip: texts between `begin` and the name, which the model may omit.
        split: name as written → (name, id).
        id_mark: one of `separators`, after which an id and another separator come.
        before: texts before the arguments, in this order, which the model may omit.
        listed: the format of calls that are JSON after `begin`.
    """

    begin: str
    separators: tuple[str, ...]
    end: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    split: Callable[[str], tuple[str, str | None]] = _same
    id_mark: str = ""
    before: tuple[str, ...] = ()
    listed: JsonCalls | None = None
    special: bool = True
    _markers: Markers = field(init=False, repr=False, compare=False)
    _separators: Markers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_markers", Markers(self.begin, *self.noise))
        object.__setattr__(self, "_separators", Markers(self.begin, *self.separators))

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        while True:
            marker = yield from pass_to_call(scan, self._markers, self.noise)
            if not marker:
                return
            try:
                yield from self._call(scan, calls)
            except Mismatch:
                if not scan.committed:
                    scan.rewind()
                    yield Content(marker)
            for text in self.end:
                yield from scan.spaces()
                yield from scan.accept(text)

    def _call(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        yield from scan.spaces()
        if self.listed is not None and (yield from scan.peek()) in ("[", "{"):
            if not (yield from self.listed.read(scan, calls)):
                raise Mismatch
            return
        for text in self.skip:
            yield from scan.accept(text)
        written, separator = yield from scan.take_name(self._separators)
        if separator == self.begin or not written.strip():
            raise Mismatch
        name, id = self.split(written.strip())
        if separator == self.id_mark:
            id, separator = yield from scan.take_name(self._separators)
        if separator == "{":
            scan.back(1)
        scan.commit()
        yield calls.start(name, id)
        yield from scan.spaces()
        for text in self.before:
            yield from scan.accept(text)
            yield from scan.spaces()
        if (yield from scan.peek()) in ("{", "[", '"', "n"):
            yield from read_arguments(scan, calls)
        else:
            yield calls.arguments("{}")
