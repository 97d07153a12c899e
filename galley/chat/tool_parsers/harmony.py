"""The harmony format of gpt-oss: messages in channels, each with a header.

    <|channel|>analysis<|message|>…<|end|>                                          reasoning
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json
        <|message|>{…}<|call|>                                                      a tool call
    <|start|>assistant<|channel|>final<|message|>…<|return|>                        content

The prompt ends with `<|start|>assistant`. Commentary without a recipient is content; what goes to
other recipients than functions is reasoning.
"""

from __future__ import annotations

import re

from galley.chat.parts import Content, Reasoning
from galley.chat.scanner import Markers, Mismatch, Scanner, Steps
from galley.chat.tool_parsers.calls import CallWriter, JointFormat

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_HEADER_BEGIN = Markers(_START, _CHANNEL)
_HEADER_END = Markers(_MESSAGE)
_BODY_END = Markers("<|end|>", "<|call|>", "<|return|>", _START)
_RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+)")
_OTHER_RECIPIENT = re.compile(r"\bto=(?!functions\.)\S")


class Harmony(JointFormat):
    """A format of reasoning, content and tool calls in one."""

    start = f"{_CHANNEL}analysis{_MESSAGE}"
    #: The answer follows it; calls come before it.
    end = f"{_CHANNEL}final{_MESSAGE}"
    part_end = "<|end|>"
    between = f"{_START}assistant"

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        recipient = yield from scan.accept(" to=")
        if recipient:
            scan.back(len(" to="))
        while True:
            if not recipient and not (yield from scan.pass_until(_HEADER_BEGIN, Content)):
                return
            recipient = False
            if not (yield from self._message(scan, calls)):
                return

    def _message(self, scan: Scanner, calls: CallWriter) -> Steps[bool]:
        """Read a header and its body; False where the text ends before the body."""
        try:
            header, _ = yield from scan.take_until(_HEADER_END)
        except Mismatch:
            return False
        call = _RECIPIENT.search(header)
        if call:
            yield calls.start(call[1])
            yield from scan.spaces()
            if (yield from scan.peek()) in ("", "<"):
                yield calls.arguments("{}")
            marker = yield from scan.pass_until(_BODY_END, calls.arguments)
        elif "analysis" in header or _OTHER_RECIPIENT.search(header):
            marker = yield from scan.pass_until(_BODY_END, Reasoning)
        else:
            marker = yield from scan.pass_until(_BODY_END, Content)
        if marker == _START:
            scan.back(len(_START))
        return True
