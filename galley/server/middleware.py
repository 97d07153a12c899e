"""Middleware that every request passes before a route: plain ASGI, outermost first.

    RootPath → AccessLog → (--middleware) → HttpMetering → RequestIds → (CORS) → ApiKeys → Gate
    → IgnoredFields → routes

Each wraps `send` only where it must: a stream's tokens go through here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from galley.errors import GalleyError, Overloaded, Unauthorized
from galley.server.callers import note_caller
from galley.server.context import NEW_ID, InFlight
from galley.server.errors import galley_response
from galley.server.fast_stream import SINK, Sink
from galley.server.protocol.base import IGNORED
from galley.server.router import ROUTE, ErrorFormat

if TYPE_CHECKING:
    from galley.observability.http_metrics import HttpMetrics

#: Prefixes of paths that need an API key.
GUARDED = ("/v1", "/v2", "/inference", "/cohere", "/ui/api")
#: A request id that may be sent back in a header.
_PLAIN = re.compile(rb"[\x21-\x7e]+")
#: A field's name that may be sent back in a header.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
#: Probes, which are not counted as requests.
UNCOUNTED = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})


def header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def path_of(scope: Scope) -> str:
    """The path without the prefix under which a proxy publishes the server."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path") or "")


def _refusal(scope: Scope, error: GalleyError, formats: Mapping[str, ErrorFormat]) -> Response:
    """The answer to a request that reaches no route, as its API spells errors.

    Args:
        formats: by the beginning of a path; OpenAI's for all others.
    """
    path = path_of(scope)
    known = (spell for prefix, spell in formats.items() if path.startswith(prefix))
    return next(known, galley_response)(error)


class RootPath:
    """Sets the prefix under which a proxy publishes the application."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["root_path"] = self.root_path
        await self.app(scope, receive, send)


class HttpMetering:
    """Counts and measures requests, to the last byte of a stream."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) in UNCOUNTED:
            await self.app(scope, receive, send)
            return
        status, size = 500, 0

        async def measure(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            elif message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        begin = time.perf_counter()
        try:
            await self.app(scope, receive, measure)
        finally:
            sink: Sink | None = scope.get(SINK)
            if sink is not None:
                size += sink.written
            length = header(scope, b"content-length") or b"0"
            self.metrics.observe(
                scope["method"],
                status,
                scope.get(ROUTE, "none"),
                request_bytes=int(length) if length.isdigit() else 0,
                response_bytes=size,
                seconds=time.perf_counter() - begin,
            )


class RequestIds:
    """Answers with an X-Request-Id header: the client's own, or a new one of 32 characters."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = header(scope, b"x-request-id")
        if name is None or not _PLAIN.fullmatch(name):
            name = uuid.uuid4().hex.encode()
            # The answer's id is then made from the id in its header, unless the body has one.
            scope[NEW_ID] = name.decode()
            scope["headers"] = [item for item in scope["headers"] if item[0] != b"x-request-id"]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            await send(message)

        await self.app(scope, receive, send_with_id)


class ApiKeys:
    """Refuses guarded paths without one of the keys; OPTIONS needs none."""

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], formats: Mapping[str, ErrorFormat]
    ) -> None:
        self.app = app
        self.formats = formats
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] in ("http", "websocket") and scope.get("method") != "OPTIONS"
        if guarded and path_of(scope).startswith(GUARDED) and not self._is_known(scope):
            error = Unauthorized(
                "Unauthorized: a valid API key is needed, sent as `Authorization: Bearer KEY`."
            )
            response = _refusal(scope, error, self.formats)
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        """Compares with every key in constant time."""
        scheme, _, key = (header(scope, b"authorization") or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            # Anthropic's clients send the key here.
            key = header(scope, b"x-api-key") or b""
        digest = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


class Gate:
    """Counts the POST requests under way, and lets no new ones in while the server drains."""

    def __init__(self, app: ASGIApp, load: InFlight, formats: Mapping[str, ErrorFormat]) -> None:
        self.app = app
        self.load = load
        self.formats = formats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or path_of(scope) in UNCOUNTED:
            await self.app(scope, receive, send)
            return
        if self.load.draining:
            response = _refusal(scope, Overloaded("The server is shutting down."), self.formats)
            response.headers["connection"] = "close"
            await response(scope, receive, send)
            return
        self.load.count += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.load.count -= 1


class IgnoredFields:
    """Names the unknown fields of a request in its answer's X-Ignored-Fields header, each with the
    known field that it resembles: `temprature;like=temperature, foo`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return

        async def send_with_names(message: Message) -> None:
            if message["type"] == "http.response.start" and (ignored := scope.get(IGNORED)):
                names = [name for name in sorted(ignored) if _NAME.fullmatch(name)][:10]
                if names:
                    likes = (f";like={ignored[name]}" if ignored[name] else "" for name in names)
                    value = ", ".join(map(str.__add__, names, likes)).encode()
                    headers = [*message.get("headers", ()), (b"x-ignored-fields", value)]
                    message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_names)


class Callers:
    """ASGI middleware: notes the caller of each request.

    Args:
        by: the flag's value, but for `user`, which is in the body.
    """

    def __init__(self, app: ASGIApp, by: str) -> None:
        self.app = app
        self.by, _, self.name = by.partition(":")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            note_caller(self._value(scope))
        await self.app(scope, receive, send)

    def _value(self, scope: Scope) -> bytes:
        if self.by == "address":
            return str((scope.get("client") or ("",))[0]).encode()
        if self.by == "header":
            return header(scope, self.name.lower().encode()) or b""
        return header(scope, b"authorization") or header(scope, b"x-api-key") or b""
