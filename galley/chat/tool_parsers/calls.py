"""Code shared by all formats of tool calls: the interface, the writer of calls, and the parser."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from galley.chat.parts import Content, Part, ToolCallArguments, ToolCallStart
from galley.chat.reasoning_count import ReasoningCount
from galley.chat.scanner import Markers, Scanner, ScanningParser, Steps
from galley.chat.tools import FunctionTool


def random_id(name: str, index: int) -> str:
    """The id of a call where the model gives none."""
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


class CallWriter:
    """Makes the parts of calls and numbers them.

    Args:
        tools: that the conversation offers.
        new_id: (name, index) → id of a call.
    """

    def __init__(
        self, tools: Sequence[FunctionTool], new_id: Callable[[str, int], str] = random_id
    ) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id
        self._index = -1

    def knows(self, name: str) -> bool:
        """Whether there is a tool of this name."""
        return name in self._tools

    def schema(self, name: str) -> dict[str, Any]:
        """The JSON schema of a tool's arguments; {} where there is none."""
        tool = self._tools.get(name)
        return (tool.parameters if tool else None) or {}

    def start(self, name: str, id: str | None = None) -> ToolCallStart:
        """The next call begins."""
        self._index += 1
        return ToolCallStart(self._index, id or self._new_id(name, self._index), name)

    def arguments(self, text: str) -> ToolCallArguments:
        """More of the arguments of the call that began last."""
        return ToolCallArguments(self._index, text)


class ToolFormat(Protocol):
    """The format in which a family of models writes tool calls.

    Attributes:
        special: markers may be special tokens.
    """

    @property
    def special(self) -> bool: ...

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        """Read a whole text and yield its content and calls; what is no call is content."""
        ...


class JointFormat(ABC):
    """A format of reasoning, content and calls in one.

    Attributes:
        special: markers may be special tokens.
        start: the marker before reasoning.
        end: a marker before the answer, which calls precede.
        part_end: the marker behind reasoning.
        between: what stands between it and `end`.
    """

    special = True
    start: str
    end: str
    part_end: str
    between: str

    @abstractmethod
    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        """Read a whole text and yield its reasoning, content and calls."""


def pass_to_call(scan: Scanner, markers: Markers, noise: Sequence[str]) -> Steps[str]:
    """Emit content up to the first of `markers` that is not in `noise`, and set the mark behind it.

    Returns the marker; "" at the end of the text.
    """
    while True:
        marker = yield from scan.pass_until(markers, Content)
        if marker not in noise:
            scan.mark()
            return marker


def pass_separator(scan: Scanner) -> Steps[str]:
    """Set the mark behind a call, and read what may separate it from another one.

    Returns the character that follows, which is not read.
    """
    yield from scan.spaces()
    scan.mark()
    if (yield from scan.accept(",")) or (yield from scan.accept(";")):
        yield from scan.spaces()
    return (yield from scan.peek())


def pass_end(scan: Scanner, listed: bool, ends: Sequence[str]) -> Steps[None]:
    """Read what ends calls: the bracket of a list and one of the markers `ends`, if they come."""
    if listed:
        yield from scan.spaces()
        yield from scan.accept("]")
    yield from scan.spaces()
    for end in ends:
        if (yield from scan.accept(end)):
            break


class ToolParser(ScanningParser):
    """The `AssistantParser` of a format of tool calls.

    White space around calls is dropped, so that content is what the model said beside them.

    Args:
        parallel: False: only the first call is passed on.
        count: counts tokens of reasoning, where the format has it.
    """

    def __init__(
        self,
        format: ToolFormat,
        calls: CallWriter,
        parallel: bool = True,
        count: ReasoningCount | None = None,
    ) -> None:
        super().__init__(lambda scan: format.steps(scan, calls), format.special, count)
        self._parallel = parallel
        self._space = ""
        self._after_call = False

    def push(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        return self._shown(super().push(text, token_ids))

    def finish(self) -> list[Part]:
        parts = self._shown(super().finish())
        if self._space and not self._after_call:
            parts.append(Content(self._space))
        return parts

    def _shown(self, parts: list[Part]) -> list[Part]:
        shown: list[Part] = []
        for part in parts:
            if isinstance(part, Content):
                text = self._space + part.text
                if self._after_call:
                    text = text.lstrip()
                said = text.rstrip()
                self._space = text[len(said) :]
                if said:
                    self._after_call = False
                    shown.append(Content(said))
                continue
            if isinstance(part, ToolCallStart):
                self._space, self._after_call = "", True
            if self._parallel or getattr(part, "index", 0) == 0:
                shown.append(part)
        return shown
