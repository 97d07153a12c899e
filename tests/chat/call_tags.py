"""A small format of tool calls, for tests: `[name:arguments]`."""

from __future__ import annotations

from galley.chat.parsers import OutputFormats
from galley.chat.parts import Content
from galley.chat.reasoning import REASONING_PARSERS
from galley.chat.scanner import Markers, Scanner, Steps
from galley.chat.tool_parsers.calls import CallWriter

_BEGIN, _COLON, _END = Markers("["), Markers(":"), Markers("]")


class CallTags:
    """Tool calls as `[name:arguments]`."""

    special = False

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        while (yield from scan.pass_until(_BEGIN, Content)):
            name, _ = yield from scan.take_until(_COLON)
            yield calls.start(name)
            yield from scan.pass_until(_END, calls.arguments)


def numbered(name: str, index: int) -> str:
    return f"call_{index}"


#: Reasoning between `<think>` tags, then `[name:arguments]`.
FORMATS = OutputFormats(REASONING_PARSERS["think_tags"], CallTags(), numbered)
