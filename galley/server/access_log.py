"""The access log: one line for each request when it is answered, with the reason of a refusal.

    127.0.0.1:5011 - "POST /v1/chat/completions HTTP/1.1" 200 0.140 s 37 tokens in, first after
        0.021 s, 8 out
    127.0.0.1:5012 - "POST /v1/chat/completions HTTP/1.1" 400 0.001 s messages: Field required
    127.0.0.1:5013 - "POST /v1/chat/completions HTTP/1.1" 499 0.982 s the client left, 37 tokens in,
        first after 0.020 s, 61 out

It replaces uvicorn's, under the same logger, whose line is written before the answer is known.
"""

from __future__ import annotations

import logging
import time

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from galley.frontend.output_processor import RequestState
from galley.frontend.submitted import SUBMITTED
from galley.server.errors import CLIENT_CLOSED

logger = logging.getLogger("uvicorn.access")

#: Set in a request's scope when its client leaves in the middle of a stream.
CLIENT_LEFT = "galley.client_left"
#: Characters of a reason that are logged: it may quote the request.
_LONGEST_REASON = 200


class _Error(msgspec.Struct):
    message: str = ""
    param: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


_decoder = msgspec.json.Decoder(_ErrorBody)


def reason_of(body: bytes) -> str:
    """The message of an error object on one line, "" where there is none."""
    try:
        message = _decoder.decode(body).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    text = " ".join(message.split())[:_LONGEST_REASON]
    return "".join(c if c.isprintable() else "?" for c in text)


def work_of(states: list[RequestState]) -> str:
    """Tokens of what a call submitted, and the time to its first one; "" where it submitted
    nothing.
    """
    if not states:
        return ""
    parts = [f"{sum(len(state.submission.prompt_token_ids) for state in states)} tokens in"]
    sequences = [sequence for state in states for sequence in state.sequences]
    begun = [each.metrics for each in sequences if each.metrics.first_token_time]
    if begun:
        first = min(each.first_token_time - each.arrival_time for each in begun)
        parts.append(f"first after {max(first, 0.0):.3f} s")
        parts.append(f"{sum(len(each.token_ids) for each in sequences)} out")
    if any(each.is_cut for each in sequences):
        parts.append("cut at the context's end")
    return ", ".join(parts)


class AccessLog:
    """Logs each request after its last byte.

    Args:
        with_ids: name the ids under which the requests were submitted.
    """

    def __init__(self, app: ASGIApp, with_ids: bool = False) -> None:
        self.app = app
        self._with_ids = with_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not logger.isEnabledFor(logging.INFO):
            await self.app(scope, receive, send)
            return
        status, reason = 500, ""
        submitted: list[RequestState] = []
        SUBMITTED.set(submitted)

        async def watch(message: Message) -> None:
            nonlocal status, reason
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status >= 400 and not reason:
                reason = reason_of(message.get("body", b""))
            await send(message)

        # The application may change the path of a mounted part.
        path = get_path_with_query_string(scope)  # type: ignore[arg-type]
        begin = time.perf_counter()
        try:
            await self.app(scope, receive, watch)
        finally:
            if scope.get(CLIENT_LEFT) or status == CLIENT_CLOSED:
                status, reason = CLIENT_CLOSED, "the client left"
            ids = [state.submission.request_id for state in submitted] if self._with_ids else []
            notes = ", ".join(filter(None, (reason, work_of(submitted), *ids)))
            logger.info(
                '%s - "%s %s HTTP/%s" %d %.3f s%s',
                get_client_addr(scope),  # type: ignore[arg-type]
                scope["method"],
                path,
                scope["http_version"],
                status,
                time.perf_counter() - begin,
                f" {notes}" if notes else "",
            )
