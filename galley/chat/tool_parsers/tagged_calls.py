"""Calls whose parameters stand between tags, each as plain text.

The values become JSON by the tool's schema: text is passed on as it comes, anything else when its
end has come.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from galley.chat.parts import Content
from galley.chat.scanner import Markers, Mismatch, Scanner, Steps
from galley.chat.tool_parsers.calls import CallWriter
from galley.chat.tool_parsers.json_calls import JsonCalls
from galley.chat.tool_parsers.values import from_text, parameter_types, string_piece

_CDATA, _CDATA_END = "<![CDATA[", "]]>"


@dataclass(frozen=True)
class TaggedCalls:
    """Calls as `BEGIN name … KEY key … value VALUE_END … END`.

    Attributes:
        begin: before a name.
        name_ends: after a name; one may also be `key` or `end`.
        end: of a call.
        key: before the key of a parameter.
        key_ends: after a key.
        value: before a value, where something stands between it and `key_ends`.
        value_end: after a value.
        opening: markers before calls: one is dropped where a call follows.
        closing: markers after calls.
        noise: further markers, which are no content.
        texts: those of `key_ends` that say that the value is text.
        others: those of `key_ends` that say that the value is JSON.
        newlines: a line feed at either end of a value belongs to the tags.
        cdata: a value may stand in a CDATA section.
        kind: texts around the type of a parameter, which may precede its value.
        doubled: a name may be written twice, with a dot between.
        listed: the format of calls that are JSON behind `begin` or an opening marker, as it says.
    """

    begin: str
    name_ends: tuple[str, ...]
    end: str
    key: str
    key_ends: tuple[str, ...]
    value_end: str
    value: str = ""
    opening: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    newlines: bool = False
    cdata: bool = False
    kind: tuple[str, str] | None = None
    doubled: bool = False
    listed: JsonCalls | None = None
    special: bool = True
    _content: Markers = field(init=False, repr=False, compare=False)
    _name: Markers = field(init=False, repr=False, compare=False)
    _next: Markers = field(init=False, repr=False, compare=False)
    _key: Markers = field(init=False, repr=False, compare=False)
    _value: Markers = field(init=False, repr=False, compare=False)
    _kind_end: Markers | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = (f"\n{self.value_end}", self.value_end) if self.newlines else (self.value_end,)
        for name, markers in (
            ("_content", (self.begin, *self.opening, *self.closing, *self.noise)),
            ("_name", self.name_ends),
            ("_next", (self.key, self.end)),
            ("_key", self.key_ends),
            ("_value", ends),
        ):
            object.__setattr__(self, name, Markers(*markers))
        object.__setattr__(self, "_kind_end", Markers(self.kind[1]) if self.kind else None)

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        inside = False
        while True:
            marker = yield from scan.pass_until(self._content, Content)
            if not marker:
                return
            if marker in self.noise or (inside and marker in self.closing):
                continue
            scan.mark()
            try:
                yield from self._after(marker, scan, calls)
                inside = True
            except Mismatch:
                if not scan.committed:
                    scan.rewind()
                    yield Content(marker)

    def _after(self, marker: str, scan: Scanner, calls: CallWriter) -> Steps[None]:
        """Read the call behind a marker. Raises Mismatch where none comes."""
        if marker in self.closing:
            raise Mismatch
        if marker in self.opening:
            yield from scan.spaces()
            if (yield from self._json(scan, calls, marker)):
                return
            yield from scan.expect(self.begin)
        if not (yield from self._json(scan, calls, self.begin)):
            yield from self.read(scan, calls)

    def _json(self, scan: Scanner, calls: CallWriter, marker: str) -> Steps[bool]:
        """Read calls that are JSON behind `marker`, where the mark is set; False: none come."""
        listed = self.listed
        if listed is None or marker not in listed.begin:
            return False
        if (yield from scan.peek()) not in ("{", "["):
            return False
        if not (yield from listed.read(scan, calls)):
            raise Mismatch
        return True

    def read(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        """Read a call behind `begin`, where the mark is set."""
        written, marker = yield from scan.take_name(self._name)
        name = written.strip()
        if not name:
            raise Mismatch
        head, _, tail = name.partition(".")
        if self.doubled and head == tail and not calls.knows(name):
            name = head
        scan.commit()
        yield calls.start(name)
        yield calls.arguments("{")
        schema = calls.schema(name)
        first = True
        while True:
            if marker not in (self.key, self.end):
                _, marker = yield from scan.take_until(self._next)
            if marker == self.end:
                break
            key, kind = yield from scan.take_until(self._key)
            key = key.strip()
            types = parameter_types(schema, key)
            if self.kind is not None and self._kind_end is not None:
                yield from scan.spaces()
                if (yield from scan.accept(self.kind[0])):
                    written, _ = yield from scan.take_until(self._kind_end)
                    types = types or frozenset((written.partition("[")[0].strip(),))
            if self.value:
                yield from scan.spaces()
                yield from scan.expect(self.value)
            if kind in self.texts:
                types = frozenset(("string",))
            elif kind in self.others:
                types -= {"string"}
            yield calls.arguments(f"{'' if first else ', '}{json.dumps(key, ensure_ascii=False)}: ")
            yield from self._pass_value(scan, calls, types)
            marker, first = "", False
        yield calls.arguments("}")

    def _pass_value(self, scan: Scanner, calls: CallWriter, types: frozenset[str]) -> Steps[None]:
        if self.newlines:
            yield from scan.accept("\n")
        ends = self._value
        if self.cdata and (yield from scan.accept(_CDATA)):
            ends = Markers(_CDATA_END + self.value_end)
            types = types or frozenset(("string",))
        if types == {"string"}:
            yield calls.arguments('"')
            yield from scan.pass_until(
                ends, lambda text: calls.arguments(string_piece(text)), end=False
            )
            yield calls.arguments('"')
        else:
            text = yield from scan.json_before(ends)
            if text is None:
                text, _ = yield from scan.take_until(ends)
            yield calls.arguments(from_text(text, types))
