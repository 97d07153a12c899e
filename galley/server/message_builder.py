"""Answers of Anthropic's /v1/messages: whole, as events, and as errors."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from galley.errors import GalleyError
from galley.request import CompletionOutput, RequestOutput
from galley.server.errors import error_headers, json_response
from galley.server.protocol.anthropic import (
    ErrorDetail,
    Message,
    MessagesError,
    MessageUsage,
    TextBlock,
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
    """One answer in the making: one text block.

    Events: message_start, content_block_start, ping, content_block_delta …, content_block_stop,
    message_delta, message_stop.
    """

    def __init__(self, id: str, model: str) -> None:
        self._id = id
        self._model = model
        self._usage = MessageUsage(0, 0)
        self._last: CompletionOutput | None = None

    def whole(self, output: RequestOutput) -> bytes:
        self._count(output)
        [choice] = output.outputs
        message = self._message()
        message.content = [TextBlock(choice.text)]
        message.stop_reason, message.stop_sequence = _stop(choice)
        return to_json(message)

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for the updates in `output` (one prompt: `index` is 0)."""
        events = [] if self._last else self._begin(output)
        self._count(output)
        [choice] = output.outputs
        self._last = choice
        if choice.text:
            events.append(_DELTA + to_json(choice.text) + _DELTA_END)
        return b"".join(events)

    def around_text(self, index: int) -> tuple[bytes, bytes] | None:
        return _DELTA, _DELTA_END

    def last(self) -> bytes:
        assert self._last is not None
        stop_reason, stop_sequence = _stop(self._last)
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        return b"".join(
            (
                event("content_block_stop", {"index": 0}),
                event("message_delta", {"delta": delta, "usage": self._usage}),
                event("message_stop", {}),
            )
        )

    def failed(self, error: GalleyError) -> bytes:
        return b"event: error\ndata: " + to_json(error_object(error)) + b"\n\n"

    def _begin(self, output: RequestOutput) -> list[bytes]:
        self._read_prompt(output)
        return [
            event("message_start", {"message": self._message()}),
            event("content_block_start", {"index": 0, "content_block": TextBlock("")}),
            event("ping", {}),
        ]

    def _count(self, output: RequestOutput) -> None:
        self._read_prompt(output)
        self._usage.output_tokens += sum(len(c.token_ids) for c in output.outputs)

    def _read_prompt(self, output: RequestOutput) -> None:
        cached = output.num_cached_tokens or 0
        self._usage.input_tokens = len(output.prompt_token_ids) - cached
        self._usage.cache_read_input_tokens = cached

    def _message(self) -> Message:
        return Message(id=self._id, model=self._model, usage=self._usage)


_DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
)
_DELTA_END = b"}}\n\n"


def _stop(choice: CompletionOutput) -> tuple[Any, str | None]:
    """(stop_reason, stop_sequence) of an answer that has ended."""
    if choice.finish_reason == "length":
        return "max_tokens", None
    if isinstance(choice.stop_reason, str):
        return "stop_sequence", choice.stop_reason
    return "end_turn", None
