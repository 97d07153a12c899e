"""Answers of /v1/responses: whole, and as nested events whose ids stay the same to the end.

response.created, response.in_progress
  response.output_item.added
    response.content_part.added
      response.output_text.delta …
      response.output_text.done
    response.content_part.done
  response.output_item.done
response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from galley.errors import GalleyError
from galley.request import CompletionOutput, RequestOutput
from galley.server.logprobs import TokenBytes, chat_logprobs
from galley.server.protocol.chat import ContentLogprob
from galley.server.protocol.responses import (
    IncompleteDetails,
    InputDetails,
    OutputMessage,
    OutputText,
    RawMessage,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from galley.server.response_builder import to_json


class ResponseObjectBuilder:
    """One answer in the making: one message with one text.

    Args:
        response: what is known before the first token; completed here.
        top_logprobs: candidates a token, None where no logprobs are asked for.
        raw: tell prompt and answer as the model has them, too.
        on_end: called when the response is complete.

    Attributes:
        response: the answer as it is now.
    """

    def __init__(
        self,
        response: ResponseObject,
        top_logprobs: int | None,
        raw: bool,
        bytes_of: TokenBytes,
        on_end: Callable[[], None],
    ) -> None:
        self.response = response
        self._on_end = on_end
        self._top = top_logprobs
        self._bytes_of = bytes_of
        self._message = OutputMessage(f"msg_{uuid.uuid4().hex}", "in_progress")
        self._text = OutputText("", logprobs=None if top_logprobs is None else [])
        self._pieces: list[str] = []
        self._raw = raw
        self._tokens: list[int] = []
        self._number = 0
        self._last: CompletionOutput | None = None
        self._delta_head = b'"item_id":"%b","output_index":0,"content_index":0,"delta":' % (
            self._message.id.encode()
        )

    def whole(self, output: RequestOutput) -> bytes:
        self._take(output)
        self._finish()
        return to_json(self.response)

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for the updates in `output` (one prompt: `index` is 0)."""
        events = [] if self._last else self._begin()
        choice, logprobs = self._take(output)
        if choice.text or logprobs:
            # The one event that comes once a token is put together from parts.
            events.append(
                b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
                b'"sequence_number":%d,%b%b,"logprobs":%b}\n\n'
                % (self._next(), self._delta_head, to_json(choice.text), to_json(logprobs))
            )
        return b"".join(events)

    def around_text(self, index: int) -> tuple[bytes, bytes] | None:
        """Every delta has a number of its own."""
        return None

    def last(self) -> bytes:
        self._finish()
        item = {"output_index": 0}
        part = {"item_id": self._message.id, "content_index": 0, **item}
        text = self._text
        return b"".join(
            (
                self._event(
                    "output_text.done", part, {"text": text.text, "logprobs": text.logprobs or []}
                ),
                self._event("content_part.done", part, {"part": text}),
                self._event("output_item.done", item, {"item": self._message}),
                self._event(self.response.status, {"response": self.response}),
            )
        )

    def failed(self, error: GalleyError) -> bytes:
        self.fail(error)
        return self._event("failed", {"response": self.response})

    def fail(self, error: GalleyError) -> None:
        """The answer ends here, with an error."""
        self.response.status = "failed"
        self.response.error = ResponseError("server_error", error.message)

    def created(self) -> bytes:
        """The first two events."""
        return self._event("created", {"response": self.response}) + self._event(
            "in_progress", {"response": self.response}
        )

    def _begin(self) -> list[bytes]:
        item = {"output_index": 0}
        part = {"item_id": self._message.id, "content_index": 0, **item}
        return [
            self.created(),
            self._event("output_item.added", item, {"item": self._message}),
            self._event("content_part.added", part, {"part": self._text}),
        ]

    def _take(self, output: RequestOutput) -> tuple[CompletionOutput, list[ContentLogprob]]:
        [choice] = output.outputs
        self._last = choice
        self._pieces.append(choice.text)
        self._tokens += choice.token_ids
        prompt, cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
        self.response.usage = ResponseUsage(
            input_tokens=prompt,
            input_tokens_details=InputDetails(cached),
            output_tokens=len(self._tokens),
            total_tokens=prompt + len(self._tokens),
        )
        if self._raw:
            read = RawMessage(output.prompt or "", output.prompt_token_ids)
            self.response.input_messages = [read]
        logprobs: list[ContentLogprob] = []
        if self._top is not None and choice.logprobs is not None:
            logprobs = chat_logprobs(
                choice.token_ids, choice.logprobs, self._top, False, self._bytes_of
            ).content
            assert self._text.logprobs is not None
            self._text.logprobs += logprobs
        return choice, logprobs

    def _finish(self) -> None:
        assert self._last is not None
        cut = self._last.finish_reason == "length"
        self._text.text = "".join(self._pieces)
        self._message.content = [self._text]
        self._message.status = "incomplete" if cut else "completed"
        self.response.output = [self._message]
        if self._raw:
            self.response.output_messages = [RawMessage(self._text.text, self._tokens)]
        self.response.status = "incomplete" if cut else "completed"
        if cut:
            self.response.incomplete_details = IncompleteDetails("max_output_tokens")
        self._on_end()

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _event(self, name: str, *fields: dict[str, Any]) -> bytes:
        name = f"response.{name}"
        body: dict[str, Any] = {"type": name, "sequence_number": self._next()}
        for part in fields:
            body |= part
        return b"event: %b\ndata: %b\n\n" % (name.encode(), to_json(body))
