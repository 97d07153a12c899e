"""Calls as JSON objects with a name and arguments, one or a list, between markers or bare."""

from __future__ import annotations

from dataclasses import dataclass, field

from galley.chat.parts import Content
from galley.chat.scanner import Markers, Mismatch, Scanner, Steps
from galley.chat.tool_parsers.calls import CallWriter, pass_end, pass_separator, pass_to_call

#: Keys of an object that wraps a call, and of its other fields.
_WRAPPER = "function"


def read_arguments(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """Pass a call's arguments on. A string is the JSON text that it spells; null is {}."""
    first = yield from scan.peek()
    if first == '"':
        text = yield from scan.json_string()
        yield calls.arguments(text or "{}")
    elif first == "n":
        yield from scan.json_text()
        yield calls.arguments("{}")
    else:
        yield from scan.json_value(calls.arguments)


@dataclass(frozen=True)
class JsonCalls:
    """Calls as `{"name": …, "arguments": {…}}`.

    Attributes:
        begin: markers before a call or a list of calls; (): calls are bare. A bare call is one of a
            tool that exists, with its name in front; other JSON is content.
        end: markers after it, which the model may omit.
        noise: further markers, which are no content.
        name_keys, argument_keys: names of the fields; a bare call has no others but `type`.
        keyed: calls are `{NAME: {…}}` instead.
    """

    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    name_keys: tuple[str, ...] = ("name",)
    argument_keys: tuple[str, ...] = ("arguments", "parameters")
    keyed: bool = False
    special: bool = True
    _markers: Markers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bare = () if self.begin else ("{", "[")
        object.__setattr__(self, "_markers", Markers(*self.begin, *self.noise, *bare))

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        while True:
            marker = yield from pass_to_call(scan, self._markers, self.noise)
            if not marker:
                return
            if marker not in self.begin:
                scan.back(len(marker))
            found = yield from self.read(scan, calls, bare=marker not in self.begin)
            if not found:
                yield Content(marker)

    def read(self, scan: Scanner, calls: CallWriter, bare: bool = False) -> Steps[bool]:
        """Read one or more calls and the end marker, from a mark on.

        Returns False, back at the mark, where no call comes.
        """
        found = listed = False
        try:
            yield from scan.spaces()
            listed = yield from scan.accept("[")
            while True:
                yield from scan.spaces()
                if self.keyed:
                    yield from self._keyed_call(scan, calls)
                else:
                    yield from self._call(scan, calls, bare, wrapper=True)
                found = True
                if (yield from pass_separator(scan)) != "{":
                    scan.rewind()
                    break
        except Mismatch:
            if not scan.committed:
                scan.rewind()
            elif not found:
                # A call that is broken has begun: what follows is read as if it had ended.
                found = True
        scan.commit()
        if found:
            yield from pass_end(scan, listed, self.end)
        return found

    def _call(
        self, scan: Scanner, calls: CallWriter, bare: bool, *, wrapper: bool = False
    ) -> Steps[None]:
        """One object. Raises Mismatch where it is none, or no call.

        Args:
            wrapper: the call may be a field of the object.
        """
        yield from scan.expect("{")
        name: str | None = None
        held: str | None = None
        first = True
        while not (yield from _closed(scan, first)):
            first = False
            key = yield from _key(scan)
            if key in self.name_keys:
                name = yield from scan.json_string()
                if bare and not calls.knows(name):
                    raise Mismatch
            elif wrapper and key == _WRAPPER and (yield from scan.peek()) == "{":
                yield from self._call(scan, calls, bare)
            elif bare and key == "type":
                yield from scan.json_string()
            elif bare and not scan.committed and (name is None or key not in self.argument_keys):
                raise Mismatch
            elif key in self.argument_keys and name is not None:
                scan.commit()
                yield calls.start(name)
                yield from read_arguments(scan, calls)
            elif key in self.argument_keys:
                held = yield from scan.json_text()
            else:
                yield from scan.json_text()
        if scan.committed:
            return
        if name is None:
            raise Mismatch
        scan.commit()
        yield calls.start(name)
        yield calls.arguments(held or "{}")

    def _keyed_call(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        """One object `{NAME: {…}}`."""
        yield from scan.expect("{")
        yield from scan.spaces()
        name = yield from _key(scan)
        scan.commit()
        yield calls.start(name)
        yield from read_arguments(scan, calls)
        yield from scan.spaces()
        yield from scan.accept("}")


def _closed(scan: Scanner, first: bool) -> Steps[bool]:
    """Whether an object ends here; else its next key follows."""
    yield from scan.spaces()
    if not first and (yield from scan.accept(",")):
        yield from scan.spaces()
    return (yield from scan.accept("}"))


def _key(scan: Scanner) -> Steps[str]:
    key = yield from scan.json_string()
    yield from scan.spaces()
    yield from scan.expect(":")
    yield from scan.spaces()
    return key
