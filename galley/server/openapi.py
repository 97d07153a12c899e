"""The API's description, written from the wire types when somebody asks for it.

Bodies are read by msgspec, of which FastAPI knows nothing: an endpoint is marked with its types,
and the document is completed from the marks. Nothing is computed at start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from galley.server.protocol.base import BodyReader, ErrorResponse, NoEffect

if TYPE_CHECKING:
    from fastapi import FastAPI

F = TypeVar("F", bound=Callable[..., Any])
_REF = "#/components/schemas/{name}"


@dataclass(frozen=True)
class Wire:
    """What an endpoint reads and answers."""

    reader: BodyReader[Any] | None
    response: Any
    streams: bool


def wire(
    reader: BodyReader[Any] | None = None, response: Any = None, *, streams: bool = False
) -> Callable[[F], F]:
    """Mark an endpoint with its types."""

    def mark(endpoint: F) -> F:
        endpoint.__wire__ = Wire(reader, response, streams)  # type: ignore[attr-defined]
        return endpoint

    return mark


def install(app: FastAPI, routes: Iterable[Any]) -> None:
    """Make `app.openapi()` tell the wire types of those of its `routes` that are marked."""
    routes = list(routes)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            _complete(document, _marked(routes))
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _marked(routes: Iterable[Any]) -> list[tuple[str, str, Wire]]:
    """(path, method, types) of the marked endpoints."""
    found = []
    for route in routes:
        types = getattr(getattr(route, "endpoint", None), "__wire__", None)
        if types is not None:
            found += [(route.path, method.lower(), types) for method in route.methods]
    return found


def _complete(document: dict[str, Any], marked: list[tuple[str, str, Wire]]) -> None:
    types = {ErrorResponse}
    for _, _, w in marked:
        if w.reader is not None:
            types.add(w.reader.type)
        if w.response is not None:
            types.add(w.response)
    ordered = sorted(types, key=lambda t: t.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    of = dict(zip(ordered, schemas, strict=True))
    document.setdefault("components", {}).setdefault("schemas", {}).update(components)
    for path, method, w in marked:
        operation = document["paths"][path][method]
        if w.reader is not None:
            _add_no_effect(components, w.reader)
            body = {"application/json": {"schema": of[w.reader.type]}}
            operation["requestBody"] = {"required": True, "content": body}
        content: dict[str, Any] = {}
        if w.response is not None:
            content["application/json"] = {"schema": of[w.response]}
        if w.streams:
            content["text/event-stream"] = {"schema": {"type": "string"}}
        error = {"application/json": {"schema": of[ErrorResponse]}}
        operation["responses"] = {
            "200": {"description": "OK", **({"content": content} if content else {})},
            "default": {"description": "An error object", "content": error},
        }


def _add_no_effect(components: dict[str, Any], reader: BodyReader[Any]) -> None:
    properties = components[reader.type.__name__].setdefault("properties", {})
    for name, field in reader.others.items():
        if isinstance(field, NoEffect) and name not in properties:
            schema = msgspec.json.schema(field.type)
            properties[name] = {**schema, "description": f"Without effect: {field.why}."}
