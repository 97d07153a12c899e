"""The API's description, written from the wire types when somebody asks for it.

Bodies are read by msgspec, of which FastAPI knows nothing: an endpoint is marked with its types
and with the statuses that it answers, and the document is made from the marks. Nothing is computed
at start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from galley.server.protocol.base import BodyReader, ErrorResponse, NoEffect

if TYPE_CHECKING:
    from fastapi import FastAPI

F = TypeVar("F", bound=Callable[..., Any])
Errors = Mapping[int, Any]
Schema = dict[str, Any]

#: What a route that reads a body may answer besides 200, and one that generates. While the server
#: drains, and while there is no engine, every POST is answered 503.
BODY_ERRORS: Errors = dict.fromkeys((400, 413, 503), ErrorResponse)
MODEL_ERRORS: Errors = {**BODY_ERRORS, 404: ErrorResponse}
GENERATION_ERRORS: Errors = {**MODEL_ERRORS, 500: ErrorResponse}
#: A route that has the engines do something, and one that asks them.
QUERY_ERRORS: Errors = dict.fromkeys((500, 503), ErrorResponse)
COMMAND_ERRORS: Errors = {**QUERY_ERRORS, 400: ErrorResponse}

_REF = "#/components/schemas/{name}"
_HEADERS = {401: "WWW-Authenticate", 503: "Retry-After"}
_TEXT: Schema = {"type": "string"}
_EVENT: Schema = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": _TEXT, "data": _TEXT},
}


@dataclass(frozen=True)
class Wire:
    """What an endpoint reads and answers.

    Attributes:
        readers: of its body, which is for one of them; () where it has none.
        response: type of the JSON of a 200, or a tuple of them; `str` is text and no JSON, None no
            body.
        streams: a 200 can be a stream of events, too.
        optional: the body can be left out.
        errors: status → type of its JSON, or a tuple of them; None where it has no body.
    """

    readers: tuple[BodyReader[Any], ...]
    response: Any
    streams: bool
    errors: Errors
    optional: bool = False


#: Of a route without parameters that answers nothing but a status.
_PLAIN = Wire((), None, False, {})


def wire(
    reader: BodyReader[Any] | tuple[BodyReader[Any], ...] = (),
    response: Any = None,
    *,
    streams: bool = False,
    errors: Errors | None = None,
    optional: bool = False,
) -> Callable[[F], F]:
    """Mark an endpoint with its types."""

    def mark(endpoint: F) -> F:
        types = Wire(_each(reader), response, streams, errors or {}, optional)
        endpoint.__wire__ = types  # type: ignore[attr-defined]
        return endpoint

    return mark


def install(
    app: FastAPI,
    routes: Iterable[Any],
    *,
    models: Sequence[str] = (),
    guarded: Sequence[str] = (),
) -> None:
    """Make `app.openapi()` tell the wire types of its `routes`.

    Args:
        models: the names that `model` may be; none = any.
        guarded: beginnings of the paths that need a key.
    """
    routes = [route for route in routes if route.include_in_schema]
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            marked = [
                (route.path, method.lower(), getattr(route.endpoint, "__wire__", _PLAIN))
                for route in routes
                for method in route.methods
            ]
            _Writer(document, [w for _, _, w in marked], models).write(marked)
            if guarded:
                _guard(document, tuple(guarded))
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


class _Writer:
    """Completes a document.

    Args:
        wires: the marks of all operations; their types become the document's components.
        models: as `install`'s.
    """

    def __init__(self, document: Schema, wires: Iterable[Wire], models: Sequence[str]) -> None:
        self.document = document
        self.models = models
        types: set[Any] = {ErrorResponse}
        readers: dict[Any, BodyReader[Any]] = {}
        for w in wires:
            readers.update((reader.type, reader) for reader in w.readers)
            types.update(*map(_each, (w.response, *w.errors.values())))
        types = (types | readers.keys()) - {str}
        ordered = sorted(types, key=lambda t: t.__name__)
        schemas, components = msgspec.json.schema_components(ordered, ref_template=_REF)
        self.of = dict(zip(ordered, schemas, strict=True))
        # In place of those of FastAPI's own parameter errors, which are answered otherwise.
        document["components"] = {"schemas": components}
        for reader in readers.values():
            self._complete(components[reader.type.__name__], reader)

    def write(self, marked: Iterable[tuple[str, str, Wire]]) -> None:
        for path, method, w in marked:
            operation = self.document["paths"][path][method]
            if w.readers:
                body = self._json(tuple(reader.type for reader in w.readers))
                operation["requestBody"] = {"required": not w.optional, "content": body}
            operation["responses"] = {
                "200": _answer(200, self._content(w)),
                **{str(s): _answer(s, self._json(t)) for s, t in sorted(w.errors.items())},
            }

    def _content(self, w: Wire) -> Schema:
        content = {"text/plain": {"schema": _TEXT}} if w.response is str else self._json(w.response)
        if w.streams:
            content["text/event-stream"] = {"itemSchema": _EVENT}
        return content

    def _json(self, types: Any) -> Schema:
        schemas = [self.of[type] for type in _each(types)]
        if not schemas:
            return {}
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        return {"application/json": {"schema": schema}}

    def _complete(self, schema: Schema, reader: BodyReader[Any]) -> None:
        """Add the fields that do not act, and the names that `model` may be."""
        properties = schema.setdefault("properties", {})
        if self.models and "model" in properties:
            properties["model"]["enum"] = [*self.models, "", None]
        for name, field in reader.others.items():
            if isinstance(field, NoEffect):
                told = msgspec.json.schema(field.type)
                told["description"] = f"Without effect: {field.why}."
            else:
                inert = [*field.inert, None, False, "", [], {}]
                told = {"enum": inert, "description": f"Refused: {field.why}"}
            properties[name] = told


def _each(types: Any) -> tuple[Any, ...]:
    """Of a tuple its items, of one thing a tuple, of None nothing."""
    return types if isinstance(types, tuple) else () if types is None else (types,)


def _answer(status: int, content: Schema) -> Schema:
    answer: Schema = {"description": HTTPStatus(status).phrase}
    if content:
        answer["content"] = content
    if status in _HEADERS and content:
        answer["headers"] = {_HEADERS[status]: {"schema": _TEXT}}
    return answer


def _guard(document: Schema, prefixes: tuple[str, ...]) -> None:
    """Say where a key is needed, and what is answered without one: as a path spells errors."""
    error = {"application/json": {"schema": {"$ref": _REF.format(name=ErrorResponse.__name__)}}}
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path.startswith(prefixes):
            for operation in operations.values():
                operation["security"] = [{"key": []}]
                own = operation["responses"].get("400", {}).get("content")
                operation["responses"]["401"] = _answer(401, own or error)
