"""The JSON schema of an answer that must call tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from galley.chat.tools import FunctionTool, ToolChoice

#: Keywords that may speak of properties beside `properties`.
_OPEN = {
    *("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"),
    *("minProperties", "allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas"),
}
#: Of a function that says nothing of its arguments.
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


def schema_of(tools: Sequence[FunctionTool], choice: ToolChoice) -> dict[str, Any] | None:
    """The schema of the whole answer; None where the model may answer without a call.

    Arguments have no properties but those that are named, unless the schema speaks of others.
    "named": of the arguments alone. "required": of a list of objects with `name` and `parameters`,
    the form that vLLM uses too.
    """
    callable_tools = choice.callable(tools)
    if choice.mode == "named":
        return _closed(callable_tools[0].parameters)
    if choice.mode != "required":
        return None
    calls = []
    definitions = {}
    for i, tool in enumerate(callable_tools):
        place = f"#/$defs/tool{i}"
        definitions[f"tool{i}"] = _moved(_closed(tool.parameters), place)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "parameters": {"$ref": place}},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not choice.parallel:
        schema["maxItems"] = 1
    return {**schema, "$defs": definitions}


def _closed(parameters: dict[str, Any] | None) -> dict[str, Any]:
    if not parameters:
        return _ANY_OBJECT
    if "properties" not in parameters or not _OPEN.isdisjoint(parameters):
        return parameters
    return {**parameters, "additionalProperties": False}


def _moved(schema: Any, place: str) -> Any:
    """A copy whose references into itself hold when it stands at `place` of another schema."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = place + reference[1:]
    return moved
