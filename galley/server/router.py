"""Routes of one API family, each with the types that its description in /openapi.json shows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from galley.errors import GalleyError, InvalidRequest
from galley.server.protocol.base import BodyReader, ErrorResponse, explain

Errors = Mapping[int, Any]
Endpoint = Callable[..., Awaitable[Response]]
#: How an API spells its errors.
ErrorFormat = Callable[[GalleyError], Response]

#: Keys of a request's scope: the path of the route that answers, and how its API spells errors.
ROUTE, ERROR_FORMAT = "galley.route", "galley.error_format"

#: Statuses besides 200 of a route that reads a body, and of one that generates. While the server
#: drains, and while there is no engine, every POST is answered 503.
BODY_ERRORS: Errors = dict.fromkeys((400, 413, 503), ErrorResponse)
MODEL_ERRORS: Errors = {**BODY_ERRORS, 404: ErrorResponse}
GENERATION_ERRORS: Errors = {**MODEL_ERRORS, 500: ErrorResponse}
#: A route that asks the engines, and one that has them do something.
QUERY_ERRORS: Errors = dict.fromkeys((500, 503), ErrorResponse)
COMMAND_ERRORS: Errors = {**QUERY_ERRORS, 400: ErrorResponse}


@dataclass(frozen=True)
class Signature:
    """The request and response types of an endpoint.

    Attributes:
        readers: of its body, which is for one of them; () where it has none.
        response: type of the JSON of a 200, or a tuple of them; `str` is text and no JSON, None no
            body.
        query: the struct of its query parameters.
        streams: a 200 can be a stream of events, too.
        optional: the body can be left out.
        errors: status → type of its JSON, or a tuple of them; None where it has no body.
        hidden: it is not in the description.
    """

    readers: tuple[BodyReader[Any], ...] = ()
    response: Any = None
    query: type[msgspec.Struct] | None = None
    streams: bool = False
    optional: bool = False
    errors: Errors = field(default_factory=dict)
    hidden: bool = False


class DescribedRoute(Route):
    """A route that knows its signature and answers nothing but its own method.

    Attributes:
        name, doc: of the endpoint's function.
    """

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        function: Endpoint,
        method: str,
        signature: Signature,
    ) -> None:
        super().__init__(path, endpoint, methods=[method], name=function.__name__)
        self.methods = {method}  # Starlette adds HEAD to GET.
        self.doc = inspect.getdoc(function) or ""
        self.signature = signature


class Router:
    """Collects routes by decorators.

    Args:
        prefix: the beginning of all its paths.
        error_format: how this API spells errors; None: as OpenAI's.
    """

    def __init__(self, prefix: str = "", error_format: ErrorFormat | None = None) -> None:
        self.prefix = prefix
        self.error_format = error_format
        self.routes: list[DescribedRoute] = []

    def get(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        return self._add("GET", path, options)

    def head(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        return self._add("HEAD", path, options)

    def delete(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        return self._add("DELETE", path, options)

    def post(
        self, path: str, body: BodyReader[Any] | tuple[BodyReader[Any], ...] = (), **options: Any
    ) -> Callable[[Endpoint], Endpoint]:
        """`options` are fields of `Signature`. A function is called with the request and, if it has
        query parameters, with their struct."""
        readers = body if isinstance(body, tuple) else (body,)
        return self._add("POST", path, {**options, "readers": readers})

    def _add(
        self, method: str, path: str, options: dict[str, Any]
    ) -> Callable[[Endpoint], Endpoint]:
        path, signature = self.prefix + path, Signature(**options)

        def register(function: Endpoint) -> Endpoint:
            @functools.wraps(function)
            async def endpoint(request: Request) -> Response:
                request.scope[ROUTE] = path
                if self.error_format is not None:
                    request.scope[ERROR_FORMAT] = self.error_format
                if signature.query is None:
                    return await function(request)
                return await function(request, read_query(request, signature.query))

            self.routes.append(DescribedRoute(path, endpoint, function, method, signature))
            return function

        return register


Q = TypeVar("Q", bound=msgspec.Struct)


def read_query(request: Request, type: type[Q]) -> Q:
    """The query parameters as a struct; unknown ones are ignored. Raises InvalidRequest."""
    values: dict[str, Any] = {}
    for parameter in msgspec.structs.fields(type):
        texts = request.query_params.getlist(parameter.encode_name)
        if texts:
            values[parameter.encode_name] = texts if _is_list(parameter.type) else texts[-1]
    try:
        return msgspec.convert(values, type, strict=False)
    except msgspec.ValidationError as e:
        message, name = explain(str(e), type)
        raise InvalidRequest(message, field=name) from e


def _is_list(type: Any) -> bool:
    return any(get_origin(option) is list for option in (type, *get_args(type)))
