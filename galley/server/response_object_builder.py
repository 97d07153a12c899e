"""Builds answers of /v1/responses: whole, and as nested events whose ids and numbers are stable.

response.created, response.in_progress
  the events of each output item (`response_items`)
response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from galley.chat.parts import AssistantParser, Content, Part
from galley.errors import GalleyError
from galley.outputs import CompletionOutput, RequestOutput
from galley.server.logprobs import TokenBytes, chat_logprobs
from galley.server.protocol.chat import ContentLogprob
from galley.server.protocol.responses import (
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    RawMessage,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from galley.server.response_builder import to_json
from galley.server.response_items import Items


class ResponseObjectBuilder:
    """Builds one answer.

    Args:
        response: what is known before the first token; completed here.
        top_logprobs: candidates a token, None where no logprobs are asked for.
        raw: include prompt and answer as the model has them.
        on_end: called when the response is complete.
        parser: of the model's text; None: it is one message.

    Attributes:
        response: the answer in its present state.
    """

    def __init__(
        self,
        response: ResponseObject,
        top_logprobs: int | None,
        raw: bool,
        bytes_of: TokenBytes,
        on_end: Callable[[], None],
        parser: AssistantParser | None = None,
    ) -> None:
        self.response = response
        self._on_end = on_end
        self._top = top_logprobs
        self._bytes_of = bytes_of
        self._parser = parser
        self._raw = raw
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._number = 0
        self._last: CompletionOutput | None = None
        self._items = Items(self._event, self._next, top_logprobs is not None, response.tools)

    def whole(self, output: RequestOutput) -> bytes:
        self._take(output)
        self._finish()
        return to_json(self.response)

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for what is new in `output` (one prompt: `index` is 0)."""
        first = self._last is None
        begun = self.created() if first else b""
        if first and self._parser is None:
            begun += self._items.begin(Content(""))
        return begun + self._take(output)

    def around_text(self, index: int) -> tuple[bytes, bytes] | None:
        """Every delta has a number of its own."""
        return None

    def last(self) -> bytes:
        end = self._finish()
        return end + self._event(self.response.status, {"response": self.response})

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

    def _take(self, output: RequestOutput) -> bytes:
        """Events of the parts in `output`."""
        [choice] = output.outputs
        self._last = choice
        self._tokens += choice.token_ids
        if self._raw:
            self._pieces.append(choice.text)
            prompt_text = RawMessage(output.prompt or "", output.prompt_token_ids)
            self.response.input_messages = [prompt_text]
        logprobs: list[ContentLogprob] = []
        if self._top is not None and choice.logprobs is not None:
            logprobs = chat_logprobs(
                choice.token_ids, choice.logprobs, self._top, False, self._bytes_of
            ).content
        events = []
        for part in self._parts(choice, bool(logprobs)):
            events.append(self._items.add(part, logprobs if isinstance(part, Content) else []))
            if isinstance(part, Content):
                logprobs = []
        parser = self._parser
        prompt, cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
        self.response.usage = ResponseUsage(
            input_tokens=prompt,
            input_tokens_details=InputDetails(cached),
            output_tokens=len(self._tokens),
            output_tokens_details=OutputDetails(parser.reasoning_tokens if parser else 0),
            total_tokens=prompt + len(self._tokens),
        )
        return b"".join(events)

    def _parts(self, choice: CompletionOutput, has_logprobs: bool) -> list[Part]:
        """The new parts of the choice; all that are left once it has ended."""
        if self._parser is None:
            return [Content(choice.text)] if choice.text or has_logprobs else []
        parts = self._parser.push(choice.text, choice.token_ids)
        if choice.finish_reason is not None:
            parts += self._parser.finish()
        return parts

    def _finish(self) -> bytes:
        """Complete the response; returns the events of the last item's end."""
        assert self._last is not None
        cut = self._last.finish_reason == "length"
        events = self._items.end("incomplete" if cut else "completed")
        self.response.output = self._items.done
        if self._raw:
            self.response.output_messages = [RawMessage("".join(self._pieces), self._tokens)]
        self.response.status = "incomplete" if cut else "completed"
        if cut:
            self.response.incomplete_details = IncompleteDetails("max_output_tokens")
        self._on_end()
        return events

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _event(self, name: str, *fields: dict[str, Any]) -> bytes:
        name = f"response.{name}"
        body: dict[str, Any] = {"type": name, "sequence_number": self._next()}
        for part in fields:
            body |= part
        return b"event: %b\ndata: %b\n\n" % (name.encode(), to_json(body))
