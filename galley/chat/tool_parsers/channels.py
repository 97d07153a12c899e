"""Formats of messages in channels, with reasoning, content and calls in one.

Inkling (every marker is a special token; the prompt ends with the first one):

    <|message_model|><|content_thinking|>…<|end_message|>
    <|message_model|>NAME<|content_invoke_tool_json|>{"name": "NAME", "args": {…}}<|end_message|>
    <|message_model|><|content_text|>…<|end_message|>

Muse Glimmer (the prompt ends with `<|start|>assistant`):

    <|start|>assistant to=self<|message|>…<|eom|>
    <|start|>assistant to=NAME<|message|><atem:function_calls>
        <atem:invoke name="NAME"><atem:parameter name="KEY">…</atem:parameter></atem:invoke>
        </atem:function_calls><|eom|>
    <|start|>assistant to=user<|message|>…<|eot|>
"""

from __future__ import annotations

import re

from galley.chat.parts import Content, Reasoning
from galley.chat.scanner import Markers, Mismatch, Scanner, Steps
from galley.chat.tool_parsers.calls import CallWriter, JointFormat
from galley.chat.tool_parsers.json_calls import JsonCalls
from galley.chat.tool_parsers.tagged_calls import TaggedCalls

_MODEL, _END_MESSAGE = "<|message_model|>", "<|end_message|>"
_THINKING, _TEXT = "<|content_thinking|>", "<|content_text|>"
_JSON = "<|content_invoke_tool_json|>"
_KINDS = (
    *(_THINKING, _TEXT, _JSON, "<|content_invoke_tool_text|>", "<|content_tool_error|>"),
    "<|content_model_end_sampling|>",
)
_BEGIN = Markers(_MODEL, *_KINDS)
_BODY_END = Markers(_END_MESSAGE, _MODEL, *_KINDS)
_CALL = JsonCalls((_JSON,), (_END_MESSAGE,), argument_keys=("args",))


class Inkling(JointFormat):
    """The format of Inkling."""

    start = _THINKING
    end = _TEXT
    part_end = _END_MESSAGE
    between = _MODEL

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        marker = _MODEL
        while True:
            if marker == _MODEL:
                marker = yield from self._header(scan)
            if not marker:
                marker = yield from scan.pass_until(_BEGIN, Content)
                if not marker:
                    return
                continue
            marker = yield from self._body(scan, calls, marker)

    def _header(self, scan: Scanner) -> Steps[str]:
        """The kind of the message that begins; "" where none does."""
        scan.mark()
        yield from scan.word()
        for kind in _KINDS:
            if (yield from scan.accept(kind)):
                scan.commit()
                return kind
        scan.rewind()
        return ""

    def _body(self, scan: Scanner, calls: CallWriter, kind: str) -> Steps[str]:
        """Read a message; returns the marker that begins the next one, "" where none has."""
        if kind == _JSON:
            scan.mark()
            if (yield from _CALL.read(scan, calls)):
                return ""
        part = Reasoning if kind == _THINKING else Content
        marker = yield from scan.pass_until(_BODY_END, part)
        return "" if marker == _END_MESSAGE else marker


_MESSAGE, _START, _EOM, _EOT = "<|message|>", "<|start|>", "<|eom|>", "<|eot|>"
_HEADER_END = Markers(_MESSAGE)
_ENDS = Markers(_EOM, _EOT, _START)
_ATEM = TaggedCalls(
    begin='<atem:invoke name="',
    name_ends=('">',),
    end="</atem:invoke>",
    key='<atem:parameter name="',
    key_ends=('">',),
    value_end="</atem:parameter>",
    doubled=True,
)
_CALL_OR_END = Markers(_ATEM.begin, _EOM, _EOT, _START)
_RECIPIENT = re.compile(r"\bto=([\w.-]+)")


class MuseGlimmer(JointFormat):
    """The format of Muse Glimmer."""

    start = f"to=self{_MESSAGE}"
    end = f"to=user{_MESSAGE}"
    part_end = _EOM
    between = f"{_START}assistant "

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        while (yield from scan.peek()):
            scan.mark()
            try:
                header, _ = yield from scan.take_name(_HEADER_END)
            except Mismatch:
                scan.rewind()
                if (yield from scan.pass_until(_ENDS, Content)) == _START:
                    yield from scan.accept("assistant")
                continue
            scan.commit()
            found = _RECIPIENT.search(header)
            recipient = found[1] if found else "user"
            if recipient == "self":
                marker = yield from scan.pass_until(_ENDS, Reasoning)
            elif recipient == "user":
                marker = yield from scan.pass_until(_ENDS, Content)
            else:
                marker = yield from self._calls(scan, calls)
            if marker == _START:
                scan.back(len(_START))

    def _calls(self, scan: Scanner, calls: CallWriter) -> Steps[str]:
        """Read a message to a tool; returns the marker that ends it."""
        while True:
            try:
                _, marker = yield from scan.take_until(_CALL_OR_END)
                if marker != _ATEM.begin:
                    return marker
                scan.mark()
                yield from _ATEM.read(scan, calls)
            except Mismatch:
                scan.commit()
                if not (yield from scan.peek()):
                    return ""
