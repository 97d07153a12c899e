"""Builds answers of Anthropic's /v1/messages: whole, as events, and errors."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from galley.chat.parts import (
    AssistantParser,
    Block,
    Content,
    Part,
    Reasoning,
    ToolCallArguments,
    ToolCallStart,
    assemble,
)
from galley.errors import GalleyError
from galley.outputs import CompletionOutput, RequestOutput
from galley.server.errors import error_headers, json_response
from galley.server.protocol.anthropic import (
    AnswerBlock,
    ErrorDetail,
    Message,
    MessagesError,
    MessageUsage,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from galley.server.response_builder import to_json

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_type(error: GalleyError) -> str:
    other = "invalid_request_error" if error.status < 500 else "api_error"
    return _ERROR_TYPES.get(error.status, other)


def error_object(error: GalleyError) -> MessagesError:
    return MessagesError("error", ErrorDetail(error_type(error), error.message))


def error_response(error: GalleyError) -> Response:
    return json_response(to_json(error_object(error)), error.status, error_headers(error))


def event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), to_json({"type": name, **fields}))


class MessageBuilder:
    """Builds one answer of one or more content blocks.

    Events: message_start, then for each block content_block_start, content_block_delta …,
    content_block_stop; message_delta, message_stop.

    Args:
        parser: of the model's text; None: it is one text block.
        kv_transfer_params: of the request, which the answer repeats.
    """

    def __init__(
        self,
        id: str,
        model: str,
        parser: AssistantParser | None = None,
        kv_transfer_params: dict[str, Any] | None = None,
    ) -> None:
        self._id = id
        self._transfer = kv_transfer_params
        self._model = model
        self._parser = parser
        self._usage = MessageUsage(0, 0)
        self._last: CompletionOutput | None = None
        #: The type of the parts of the open block, and its index.
        self._open: type[Part] | None = None
        self._index = -1
        self._called = False

    def whole(self, output: RequestOutput) -> bytes:
        self._count(output)
        [choice] = output.outputs
        blocks = assemble(self._parts(choice))
        message = self._message()
        message.content = [_block(block) for block in blocks or [Content("")]]
        message.stop_reason, message.stop_sequence = self._stop(choice)
        return to_json(message)

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for what is new in `output` (one prompt: `index` is 0)."""
        events = [] if self._last else self._begin(output)
        self._count(output)
        [choice] = output.outputs
        self._last = choice
        for part in self._parts(choice):
            events.append(self._event(part))
        return b"".join(events)

    def around_text(self, index: int) -> tuple[bytes, bytes] | None:
        return (_DELTA, _DELTA_END) if self._parser is None else None

    def last(self) -> bytes:
        assert self._last is not None
        stop_reason, stop_sequence = self._stop(self._last)
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        return b"".join(
            (
                b"" if self._open else self._start(Content("")),
                event("content_block_stop", {"index": self._index}),
                event("message_delta", {"delta": delta, "usage": self._usage}),
                event("message_stop", {}),
            )
        )

    def failed(self, error: GalleyError) -> bytes:
        return b"event: error\ndata: " + to_json(error_object(error)) + b"\n\n"

    def _begin(self, output: RequestOutput) -> list[bytes]:
        self._read_prompt(output)
        events = [event("message_start", {"message": self._message()})]
        if self._parser is None:
            events.append(self._start(Content("")))
        return [*events, event("ping", {})]

    def _parts(self, choice: CompletionOutput) -> list[Part]:
        """The new parts of the choice; all that are left once it has ended."""
        if self._parser is None:
            return [Content(choice.text)] if choice.text else []
        parts = self._parser.push(choice.text, choice.token_ids)
        if choice.finish_reason is not None:
            parts += self._parser.finish()
        self._called = self._called or any(isinstance(part, ToolCallStart) for part in parts)
        return parts

    def _event(self, part: Part) -> bytes:
        if isinstance(part, Content) and self._parser is None:
            return _DELTA + to_json(part.text) + _DELTA_END
        if isinstance(part, ToolCallStart):
            return self._start(part)
        events = b""
        if not isinstance(part, ToolCallArguments) and self._open is not type(part):
            events = self._start(part)
        return events + event("content_block_delta", {"index": self._index, "delta": _delta(part)})

    def _start(self, part: Reasoning | Content | ToolCallStart) -> bytes:
        """Close the open block and open one for `part`."""
        closed = event("content_block_stop", {"index": self._index}) if self._open else b""
        self._open = type(part)
        self._index += 1
        if isinstance(part, ToolCallStart):
            block: AnswerBlock = ToolUseBlock(part.id, part.name)
        else:
            block = TextBlock("") if isinstance(part, Content) else ThinkingBlock("")
        opened = event("content_block_start", {"index": self._index, "content_block": block})
        return closed + opened

    def _stop(self, choice: CompletionOutput) -> tuple[Any, str | None]:
        """(stop_reason, stop_sequence) of an answer that has ended."""
        if choice.finish_reason == "length":
            return "max_tokens", None
        if isinstance(choice.stop_reason, str):
            return "stop_sequence", choice.stop_reason
        return "tool_use" if self._called else "end_turn", None

    def _count(self, output: RequestOutput) -> None:
        self._read_prompt(output)
        self._usage.output_tokens += sum(len(c.token_ids) for c in output.outputs)

    def _read_prompt(self, output: RequestOutput) -> None:
        cached = output.num_cached_tokens or 0
        self._usage.input_tokens = len(output.prompt_token_ids) - cached
        self._usage.cache_read_input_tokens = cached

    def _message(self) -> Message:
        transfer = UNSET if self._transfer is None else self._transfer
        return Message(
            id=self._id, model=self._model, usage=self._usage, kv_transfer_params=transfer
        )


#: The delta of the one text block of an answer without a parser.
_DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
)
_DELTA_END = b"}}\n\n"


def _delta(part: Reasoning | Content | ToolCallArguments) -> dict[str, str]:
    if isinstance(part, Reasoning):
        return {"type": "thinking_delta", "thinking": part.text}
    if isinstance(part, Content):
        return {"type": "text_delta", "text": part.text}
    return {"type": "input_json_delta", "partial_json": part.text}


def _block(block: Block) -> AnswerBlock:
    if isinstance(block, Reasoning):
        return ThinkingBlock(block.text)
    if isinstance(block, Content):
        return TextBlock(block.text)
    try:
        arguments = msgspec.json.decode(block.arguments or "{}")
    except msgspec.DecodeError:
        arguments = {}  # Cut off by a limit on tokens; an input must be JSON.
    return ToolUseBlock(block.id, block.name, arguments)
