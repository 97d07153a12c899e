"""Constraints on an answer that may or must call tools: JSON schemas and structural tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from galley.chat.tool_parsers.spelling import ANY_OBJECT, CallSpelling, Signature
from galley.chat.tools import FunctionTool, ToolChoice

#: Keywords that may speak of properties beside `properties`.
_OPEN = {
    *("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"),
    *("minProperties", "allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas"),
}


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


def tag_of(
    tools: Sequence[FunctionTool],
    choice: ToolChoice,
    spelling: CallSpelling,
    schema: Any = None,
    tokens: Sequence[str] = (),
) -> dict[str, Any]:
    """The structural tag of an answer of the model's own form that calls tools as it likes.

    Arguments of strict functions keep to their schema, those of others are JSON.

    Args:
        schema: of an answer without a call; None: it is any text.
        tokens: special tokens that may stand beside calls.

    Raises:
        Unsupported: a schema that the spelling cannot keep.
    """
    functions = [
        Signature(tool.name, _closed(tool.parameters) if tool.strict else None)
        for tool in choice.callable(tools)
    ]
    once = not choice.parallel
    tags = spelling.tags(functions, once)
    if schema is None and not spelling.leading:
        tag_format = {
            "type": "triggered_tags",
            "triggers": list(spelling.triggers),
            "tags": tags,
            "stop_after_first": once and not spelling.whole,
            "excludes": list(spelling.excluded),
            "excludes_patterns": list(spelling.forbidden),
            "excludes_at_start": list(spelling.not_leading),
            "tokens": [*spelling.around, *tokens],
        }
    else:
        some = {"separator": spelling.separator, "at_least_one": True, "tags": tags}
        calls = {"type": "tags_with_separator", **some, "stop_after_first": once}
        answer: dict[str, Any] = {"type": "json_schema", "json_schema": schema}
        if schema is None:
            answer = {"type": "any_text", "excludes_at_start": list(spelling.not_leading)}
        tag_format = {"type": "or", "elements": [calls, answer]}
    return {"type": "structural_tag", "format": tag_format}


def texts_of(spelling: CallSpelling) -> list[str]:
    """The texts that a spelling is made of, as far as they may have special tokens."""
    sample = {"properties": {"k": {"type": "string"}}, "required": ["k"]}
    tags = spelling.tags([Signature("f", sample)], False)
    return [*spelling.triggers, *spelling.around, *_strings(tags)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _closed(parameters: dict[str, Any] | None) -> dict[str, Any]:
    if not parameters:
        return ANY_OBJECT
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
