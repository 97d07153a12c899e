"""Errors as HTTP answers: the error tree, and the web framework's own, in OpenAI's shape."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from galley.errors import GalleyError, Overloaded, Unauthorized
from galley.server.missing import advice
from galley.server.protocol.base import ErrorInfo, ErrorResponse
from galley.server.router import ERROR_FORMAT

logger = logging.getLogger(__name__)

#: Seconds after which a client may retry an overloaded server.
RETRY_AFTER = "1"
#: nginx's "client closed request"; only the metrics see it.
CLIENT_CLOSED = 499


class ClientDisconnected(Exception):
    """The client closed the connection before its answer was complete."""


def error_body(message: str, type: str, code: int, param: str | None = None) -> bytes:
    return msgspec.json.encode(ErrorResponse(ErrorInfo(message, type, param, code)))


def error_event(error: GalleyError) -> bytes:
    """The body of an error found after a stream has begun."""
    return error_body(error.message, error.type, error.status, error.field)


def json_response(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(body, status, headers, media_type="application/json")


def error_headers(error: GalleyError) -> dict[str, str] | None:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, Overloaded):
        return {"Retry-After": RETRY_AFTER}
    return None


def galley_response(error: GalleyError) -> Response:
    return json_response(error_event(error), error.status, error_headers(error))


def install(app: Starlette, log_stack: bool = False, paths: Sequence[str] = ()) -> None:
    """Make `app` answer every failure with an error object.

    Args:
        log_stack: log where each was found, too.
        paths: of the routes, for help with others.
    """

    async def on_galley(request: Request, error: Exception) -> Response:
        assert isinstance(error, GalleyError)
        if log_stack:
            logger.error("%s", error.message, exc_info=error)
        answer: Response = request.scope.get(ERROR_FORMAT, galley_response)(error)
        return answer

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = error.status_code
        phrase = HTTPStatus(status).phrase
        where = f"{request.method} {request.url.path}: " if status in (404, 405) else ""
        message = f"{where}{error.detail}"
        if status == 404 and (help := advice(request.url.path, paths)):
            message = f"{message}. {help}"
        body = error_body(message, phrase, status)
        return json_response(body, status, dict(error.headers or {}))

    async def on_disconnect(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    async def on_other(request: Request, error: Exception) -> Response:
        # The web framework logs the exception; its text may hold secrets.
        body = error_body("Internal server error.", "InternalServerError", 500)
        return json_response(body, 500)

    app.add_exception_handler(GalleyError, on_galley)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientDisconnected, on_disconnect)
    app.add_exception_handler(Exception, on_other)
