"""The API's description: an OpenAPI document, written from the routes' signatures on demand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from http import HTTPStatus
from typing import Any

import msgspec

from galley import __version__
from galley.server.protocol.base import BodyReader, ErrorResponse, NoEffect
from galley.server.router import DescribedRoute, Signature

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
_HEADERS = {401: "WWW-Authenticate", 503: "Retry-After"}
_TEXT: Schema = {"type": "string"}
_EVENT: Schema = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": _TEXT, "data": _TEXT},
}


class Document:
    """The document; it is written when it is first asked for.

    Args:
        routes: of all families; hidden ones are left out.
        models: the names that `model` may be; () = any.
        guarded: beginnings of the paths that need a key.
        root_path: prefix under which a proxy publishes the server.
    """

    def __init__(
        self,
        routes: Sequence[DescribedRoute],
        *,
        models: Sequence[str] = (),
        guarded: Sequence[str] = (),
        root_path: str = "",
    ) -> None:
        self._routes = [route for route in routes if not route.signature.hidden]
        self._models = models
        self._guarded = tuple(guarded)
        self.root_path = root_path.rstrip("/")

    @cached_property
    def json(self) -> bytes:
        document: Schema = {
            "openapi": "3.1.0",
            "info": {"title": "Galley", "version": __version__},
            "paths": {},
        }
        if self.root_path:
            document["servers"] = [{"url": self.root_path}]
        _Writer(document, self._routes, self._models).write()
        if self._guarded:
            _guard(document, self._guarded)
        return msgspec.json.encode(document)


def _shown(path: str) -> str:
    """A route's path without the kinds of its parameters."""
    return re.sub(r":\w+}", "}", path)


class _Writer:
    """Completes a document.

    Args:
        routes: their types become the document's components.
        models: as `Document`'s.
    """

    def __init__(
        self, document: Schema, routes: Sequence[DescribedRoute], models: Sequence[str]
    ) -> None:
        self.document = document
        self.routes = routes
        self.models = models
        types: set[Any] = {ErrorResponse}
        readers: dict[Any, BodyReader[Any]] = {}
        for signature in (route.signature for route in routes):
            readers.update((reader.type, reader) for reader in signature.readers)
            types.update(*map(_each, (signature.response, *signature.errors.values())))
        types = (types | readers.keys()) - {str}
        ordered = sorted(types, key=lambda t: t.__name__)
        schemas, components = msgspec.json.schema_components(ordered, ref_template=_REF)
        self.of = dict(zip(ordered, schemas, strict=True))
        document["components"] = {"schemas": components}
        for reader in readers.values():
            self._complete(components[reader.type.__name__], reader)

    def write(self) -> None:
        for route in self.routes:
            for method in route.methods or ():
                operations = self.document["paths"].setdefault(_shown(route.path), {})
                operations[method.lower()] = self._operation(route, method.lower())

    def _operation(self, route: DescribedRoute, method: str) -> Schema:
        signature = route.signature
        operation: Schema = {
            "summary": route.name.replace("_", " ").title(),
            "operationId": re.sub(r"\W", "_", f"{route.name}{route.path}") + f"_{method}",
        }
        if route.doc:
            operation["description"] = route.doc
        parameters = [*_path_parameters(_shown(route.path)), *_query_parameters(signature)]
        if parameters:
            operation["parameters"] = parameters
        if signature.readers:
            body = self._json(tuple(reader.type for reader in signature.readers))
            operation["requestBody"] = {"required": not signature.optional, "content": body}
        errors = sorted(signature.errors.items())
        operation["responses"] = {
            "200": _answer(200, self._content(signature)),
            **{str(status): _answer(status, self._json(types)) for status, types in errors},
        }
        return operation

    def _content(self, signature: Signature) -> Schema:
        if signature.response is str:
            return {"text/plain": {"schema": _TEXT}}
        content = self._json(signature.response)
        if signature.streams:
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
                schema_of = msgspec.json.schema(field.type)
                schema_of["description"] = f"Without effect: {field.why}."
            else:
                inert = [*field.inert, None, False, "", [], {}]
                schema_of = {"enum": inert, "description": f"Refused: {field.why}"}
            properties[name] = schema_of


def _path_parameters(path: str) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query_parameters(signature: Signature) -> list[Schema]:
    if signature.query is None:
        return []
    _, components = msgspec.json.schema_components([signature.query])
    properties = components[signature.query.__name__]["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in properties.items()
    ]


def _each(types: Any) -> tuple[Any, ...]:
    """A tuple as it is, None as an empty one, anything else as a tuple of one."""
    return types if isinstance(types, tuple) else () if types is None else (types,)


def _answer(status: int, content: Schema) -> Schema:
    answer: Schema = {"description": HTTPStatus(status).phrase}
    if content:
        answer["content"] = content
    if status in _HEADERS and content:
        answer["headers"] = {_HEADERS[status]: {"schema": _TEXT}}
    return answer


def _guard(document: Schema, prefixes: tuple[str, ...]) -> None:
    """Mark the operations that need a key, with their 401 in the error format of the path."""
    error = {"application/json": {"schema": {"$ref": _REF.format(name=ErrorResponse.__name__)}}}
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path.startswith(prefixes):
            for operation in operations.values():
                operation["security"] = [{"key": []}]
                own = operation["responses"].get("400", {}).get("content")
                operation["responses"]["401"] = _answer(401, own or error)
