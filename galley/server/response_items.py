"""The output items of a response while they grow, and their events.

    Content            message          content_part.*, output_text.*
    Reasoning          reasoning        content_part.*, reasoning_text.*
    ToolCallStart, …   function_call    function_call_arguments.*
                       custom_tool_call custom_tool_call_input.*

Items follow one another: the next one begins when the one before is done.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from galley.chat.custom_tools import InputReader
from galley.chat.parts import Content, Part, Reasoning, ToolCallArguments, ToolCallStart
from galley.server.protocol.chat import ContentLogprob
from galley.server.protocol.responses import (
    CustomCallItem,
    FunctionCallItem,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from galley.server.protocol.tools import ResponseCustomTool, ResponseTool, names_within
from galley.server.response_builder import to_json

#: Writes an event: its name without "response.", and its fields.
Write = Callable[..., bytes]


class StreamedItem(Protocol):
    """One item; each method returns its events."""

    @property
    def item(self) -> OutputItem: ...
    def open(self) -> bytes: ...
    def add(self, text: str, logprobs: list[ContentLogprob]) -> bytes: ...
    def close(self, status: ItemStatus) -> bytes: ...


class StreamedMessage:
    """A message with one text.

    Args:
        next_number: gives the number of the next event.
        logprobs: the text has logprobs.
    """

    def __init__(
        self, write: Write, next_number: Callable[[], int], index: int, logprobs: bool
    ) -> None:
        self.item = OutputMessage(_new_id("msg"), "in_progress")
        self._write = write
        self._next_number = next_number
        self._text = OutputText("", logprobs=[] if logprobs else None)
        self._pieces: list[str] = []
        self._place = {"output_index": index}
        self._part_place = {"item_id": self.item.id, "content_index": 0, **self._place}
        self._head = b'"item_id":"%b","output_index":%d,"content_index":0,"delta":' % (
            self.item.id.encode(),
            index,
        )

    def open(self) -> bytes:
        added = self._write("output_item.added", self._place, {"item": self.item})
        return added + self._write("content_part.added", self._part_place, {"part": self._text})

    def add(self, text: str, logprobs: list[ContentLogprob]) -> bytes:
        self._pieces.append(text)
        if self._text.logprobs is not None:
            self._text.logprobs += logprobs
        # The one event that comes once a token is put together from bytes.
        return (
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
            b'"sequence_number":%d,%b%b,"logprobs":%b}\n\n'
            % (self._next_number(), self._head, to_json(text), to_json(logprobs))
        )

    def close(self, status: ItemStatus) -> bytes:
        text = self._text
        text.text = "".join(self._pieces)
        self.item.content, self.item.status = [text], status
        done = {"text": text.text, "logprobs": text.logprobs or []}
        return b"".join(
            (
                self._write("output_text.done", self._part_place, done),
                self._write("content_part.done", self._part_place, {"part": text}),
                self._write("output_item.done", self._place, {"item": self.item}),
            )
        )


class StreamedReasoning:
    """Reasoning with one text."""

    def __init__(self, write: Write, index: int) -> None:
        self.item = ReasoningItem(_new_id("rs"), "in_progress")
        self._write = write
        self._pieces: list[str] = []
        self._place = {"output_index": index}
        self._part_place = {"item_id": self.item.id, "content_index": 0, **self._place}

    def open(self) -> bytes:
        part = {"part": ReasoningText("")}
        added = self._write("output_item.added", self._place, {"item": self.item})
        return added + self._write("content_part.added", self._part_place, part)

    def add(self, text: str, logprobs: list[ContentLogprob]) -> bytes:
        self._pieces.append(text)
        return self._write("reasoning_text.delta", self._part_place, {"delta": text})

    def close(self, status: ItemStatus) -> bytes:
        text = ReasoningText("".join(self._pieces))
        self.item.content, self.item.status = [text], status
        return b"".join(
            (
                self._write("reasoning_text.done", self._part_place, {"text": text.text}),
                self._write("content_part.done", self._part_place, {"part": text}),
                self._write("output_item.done", self._place, {"item": self.item}),
            )
        )


class StreamedCall:
    """A call of a function.

    Args:
        within: namespace and name of a function of a namespace.
    """

    def __init__(
        self, write: Write, index: int, start: ToolCallStart, within: tuple[str, str] | None
    ) -> None:
        namespace, name = within or (msgspec.UNSET, start.name)
        self.item = FunctionCallItem(
            _new_id("fc"), "in_progress", start.id, name, namespace=namespace
        )
        self._write = write
        self._pieces: list[str] = []
        self._place = {"output_index": index}
        self._item_place = {"item_id": self.item.id, **self._place}

    def open(self) -> bytes:
        return self._write("output_item.added", self._place, {"item": self.item})

    def add(self, text: str, logprobs: list[ContentLogprob]) -> bytes:
        self._pieces.append(text)
        return self._write("function_call_arguments.delta", self._item_place, {"delta": text})

    def close(self, status: ItemStatus) -> bytes:
        self.item.arguments, self.item.status = "".join(self._pieces), status
        done = {"name": self.item.name, "arguments": self.item.arguments}
        return self._write("function_call_arguments.done", self._item_place, done) + self._write(
            "output_item.done", self._place, {"item": self.item}
        )


class StreamedCustomCall:
    """A call of a tool whose input is a free text."""

    def __init__(self, write: Write, index: int, start: ToolCallStart) -> None:
        self.item = CustomCallItem(_new_id("ctc"), "in_progress", start.id, start.name)
        self._write = write
        self._reader = InputReader()
        self._place = {"output_index": index}
        self._item_place = {"item_id": self.item.id, **self._place}

    def open(self) -> bytes:
        return self._write("output_item.added", self._place, {"item": self.item})

    def add(self, text: str, logprobs: list[ContentLogprob]) -> bytes:
        return self._delta(self._reader.push(text))

    def close(self, status: ItemStatus) -> bytes:
        self.item.input, rest = self._reader.finish()
        self.item.status = status
        done = {"input": self.item.input}
        return b"".join(
            (
                self._delta(rest),
                self._write("custom_tool_call_input.done", self._item_place, done),
                self._write("output_item.done", self._place, {"item": self.item}),
            )
        )

    def _delta(self, text: str) -> bytes:
        if not text:
            return b""
        return self._write("custom_tool_call_input.delta", self._item_place, {"delta": text})


class Items:
    """All items of a response.

    Args:
        write: writes an event.
        next_number: gives the number of the next event.
        logprobs: texts of messages have logprobs.
        tools: of the request.

    Attributes:
        done: the items that are complete.
    """

    def __init__(
        self,
        write: Write,
        next_number: Callable[[], int],
        logprobs: bool,
        tools: Sequence[ResponseTool],
    ) -> None:
        self._write = write
        self._next_number = next_number
        self._logprobs = logprobs
        self._custom = {tool.name for tool in tools if isinstance(tool, ResponseCustomTool)}
        self._within = names_within(tools)
        self._open: StreamedItem | None = None
        self._kind: type[Part] | None = None
        self.done: list[OutputItem] = []

    def begin(self, part: Reasoning | Content | ToolCallStart) -> bytes:
        """End the open item and begin the item of `part`; returns the events."""
        closed = self._close("completed")
        index = len(self.done)
        item: StreamedItem
        if isinstance(part, ToolCallStart) and part.name in self._custom:
            item = StreamedCustomCall(self._write, index, part)
        elif isinstance(part, ToolCallStart):
            item = StreamedCall(self._write, index, part, self._within.get(part.name))
        elif isinstance(part, Reasoning):
            item = StreamedReasoning(self._write, index)
        else:
            item = StreamedMessage(self._write, self._next_number, index, self._logprobs)
        self._open, self._kind = item, type(part)
        return closed + item.open()

    def add(self, part: Part, logprobs: list[ContentLogprob]) -> bytes:
        """The events of `part`; `logprobs` are of the tokens of a content."""
        if isinstance(part, ToolCallStart):
            return self.begin(part)
        begun = b""
        if not isinstance(part, ToolCallArguments) and self._kind is not type(part):
            begun = self.begin(part)
        assert self._open is not None
        return begun + self._open.add(part.text, logprobs)

    def end(self, status: ItemStatus) -> bytes:
        """End the last item, which is an empty message if there is none; returns the events."""
        begun = b"" if self._open else self.begin(Content(""))
        return begun + self._close(status)

    def _close(self, status: ItemStatus) -> bytes:
        if self._open is None:
            return b""
        events = self._open.close(status)
        self.done.append(self._open.item)
        self._open = None
        return events


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
