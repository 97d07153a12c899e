"""Values of arguments that models write as plain text or as Python, as JSON text."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

import msgspec

_NAMES = {"true": True, "false": False, "null": None, "none": None, "True": True}
#: JSON schema's names of the types of Python's JSON values.
_TYPES: dict[type, tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    str: ("string",),
    list: ("array",),
    dict: ("object",),
    type(None): ("null",),
}
#: Nested references that are followed to find a type.
_MAX_DEPTH = 16
#: Keywords of which a schema says what is inside.
_INNER = {"properties", "items", "$ref"}


def string_piece(text: str) -> str:
    """A piece of a text as it stands in a JSON string, without quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def parameter_types(schema: Mapping[str, Any], name: str) -> frozenset[str]:
    """JSON types that the property `name` of an object may have; empty: not known."""
    properties = schema.get("properties")
    one = properties.get(name) if isinstance(properties, Mapping) else None
    return frozenset(_types(one, schema, 0))


def types_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """JSON types that a value of `schema`, a part of `root`, may have; empty: not known."""
    return frozenset(_types(schema, root, 0))


def member(schema: Any, name: str, root: Mapping[str, Any]) -> Any:
    """The schema of a property or of an item of `schema`, a part of `root`; None: not known."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return None
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and name in properties:
            return properties[name]
        if "items" in schema:
            return schema["items"]
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            schema = _referred(reference, root)
            continue
        branches = [b for key in ("anyOf", "oneOf", "allOf") for b in schema.get(key) or ()]
        schema = next((b for b in branches if isinstance(b, Mapping) and b.keys() & _INNER), None)
    return None


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    target: Any = root
    for step in reference[2:].split("/"):
        target = target.get(step) if isinstance(target, Mapping) else None
    return target


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> set[str]:
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {one for one in kind if isinstance(one, str)}
    for key in ("enum", "const"):
        if key in schema:
            values = schema[key] if key == "enum" else [schema[key]]
            return {_TYPES[type(value)][0] for value in values if type(value) in _TYPES}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        return _types(_referred(reference, root), root, depth + 1)
    found: set[str] = set()
    for key in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(key) or ():
            found |= _types(one, root, depth + 1)
    return found


def from_text(text: str, types: frozenset[str]) -> str:
    """JSON text of a value that is written without quotes, by the types it may have.

    JSON of one of `types` stays as it is, Python literals are converted, and anything else
    is a string. Without types, JSON is taken for what it says.
    """
    if types == {"string"}:
        return json.dumps(text, ensure_ascii=False)
    stripped = text.strip()
    for read in (_json, python_literal):
        try:
            value = read(stripped)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if "integer" in types and "number" not in types and type(value) is float:
            if not value.is_integer():
                continue
            value = int(value)
        if not types or types.intersection(_TYPES[type(value)]) or "string" not in types:
            try:
                return _written(value)
            except ValueError:
                continue
    return json.dumps(text, ensure_ascii=False)


def _written(value: Any) -> str:
    """A value as JSON text. Halves of UTF-16 pairs, which Python's escapes can spell, are joined or
    replaced. Raises ValueError for a number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if any("\ud800" <= c <= "\udfff" for c in text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _json(text: str) -> Any:
    return msgspec.json.decode(text)


def from_python(text: str) -> str:
    """JSON text of a Python expression; one that is no literal is a string."""
    try:
        return _written(python_literal(text))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return json.dumps(text.strip(), ensure_ascii=False)


def python_literal(text: str) -> Any:
    """The value of a Python literal, with JSON's names too.

    Raises ValueError or SyntaxError for any other expression.
    """
    return _value(ast.parse(text.strip(), mode="eval").body)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in _TYPES:
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("keys of objects are texts")
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        if type(value) in (int, float):
            return -value
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    raise ValueError("not a literal")
