"""Calls of MiniMax-M3: arguments as nested tags, each with a marker in front.

]<]minimax[>[<tool_call>
]<]minimax[>[<invoke name="order">]<]minimax[>[<city>Rome]<]minimax[>[</city>
    ]<]minimax[>[<items>]<]minimax[>[<item>7]<]minimax[>[</item>]<]minimax[>[</items>
    ]<]minimax[>[</invoke>
]<]minimax[>[</tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from galley.chat.parts import Content
from galley.chat.scanner import Markers, Mismatch, Scanner, Steps
from galley.chat.tool_parsers.calls import CallWriter
from galley.chat.tool_parsers.values import from_text, member, string_piece, types_of

#: The deepest nesting of tags.
MAX_DEPTH = 64
_ITEM = "item"
_TAG_END, _NAME_END = Markers(">"), Markers('">')


@dataclass(frozen=True)
class NestedCalls:
    """Calls as `MARK<invoke name="…">{MARK<KEY>VALUE MARK</KEY>}MARK</invoke>`.

    A value is text, or tags: an array if they are named `item` or the schema says so, else an
    object.
    """

    mark: str
    special: bool = True
    _begin: str = field(init=False, repr=False, compare=False)
    _opening: str = field(init=False, repr=False, compare=False)
    _content: Markers = field(init=False, repr=False, compare=False)
    _tag: Markers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        begin, opening = f'{self.mark}<invoke name="', f"{self.mark}<tool_call>"
        for name, value in (
            ("_begin", begin),
            ("_opening", opening),
            ("_content", Markers(begin, opening, f"{self.mark}</tool_call>")),
            ("_tag", Markers(f"{self.mark}<")),
        ):
            object.__setattr__(self, name, value)

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        inside = False
        while True:
            marker = yield from scan.pass_until(self._content, Content)
            if not marker:
                return
            if inside and marker not in (self._begin, self._opening):
                continue
            scan.mark()
            try:
                if marker == self._opening:
                    yield from scan.spaces()
                    yield from scan.expect(self._begin)
                elif marker != self._begin:
                    raise Mismatch
                yield from self._call(scan, calls)
                inside = True
            except Mismatch:
                if not scan.committed:
                    scan.rewind()
                    yield Content(marker)

    def _call(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        written, _ = yield from scan.take_name(_NAME_END)
        name = written.strip()
        if not name:
            raise Mismatch
        scan.commit()
        yield calls.start(name)
        schema = calls.schema(name)
        opening = "{"
        while True:
            _, key = yield from self._next(scan)
            if key is None:
                break
            yield calls.arguments(f"{opening}{json.dumps(key, ensure_ascii=False)}: ")
            opening = ", "
            inner = member(schema, key, schema)
            if types_of(inner, schema) == {"string"}:
                yield calls.arguments('"')
                yield from scan.pass_until(
                    Markers(f"{self.mark}</{key}>"),
                    lambda text: calls.arguments(string_piece(text)),
                    end=False,
                )
                yield calls.arguments('"')
            else:
                text = yield from scan.json_before(Markers(f"{self.mark}</{key}>"))
                if text is None:
                    value = yield from self._value(scan, inner, schema, 1)
                else:
                    value = from_text(text, types_of(inner, schema))
                yield calls.arguments(value)
        yield calls.arguments("{}" if opening == "{" else "}")

    def _next(self, scan: Scanner) -> Steps[tuple[str, str | None]]:
        """(text before the next tag, its name); None for a closing tag."""
        text, _ = yield from scan.take_until(self._tag)
        closing = yield from scan.accept("/")
        name, _ = yield from scan.take_name(_TAG_END)
        return text, None if closing else name

    def _value(self, scan: Scanner, schema: Any, root: Mapping[str, Any], depth: int) -> Steps[str]:
        """The JSON text of a value, up to and with its closing tag."""
        if depth > MAX_DEPTH:
            raise Mismatch
        types = types_of(schema, root)
        members: list[tuple[str, str]] = []
        while True:
            text, key = yield from self._next(scan)
            if key is None:
                break
            inner = member(schema, key, root)
            value = yield from self._value(scan, inner, root, depth + 1)
            members.append((key, value))
        if not members:
            if not text.strip() and types & {"array", "object"}:
                return "[]" if "array" in types else "{}"
            return from_text(text, types)
        if "object" not in types and all(key == _ITEM for key, _ in members):
            return f"[{', '.join(value for _, value in members)}]"
        pairs = dict(members)
        inside = (f"{json.dumps(k, ensure_ascii=False)}: {v}" for k, v in pairs.items())
        return f"{{{', '.join(inside)}}}"
