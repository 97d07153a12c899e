"""Turns of a conversation in request bodies. They are read unchecked: `galley.chat`
checks them when it makes the prompt. Their schemas here serve the API's description only.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from galley.chat.messages import SPEAKING, TEXT_PARTS

_TEXT: dict[str, Any] = {"type": "string"}


def _part(kind: str, key: str) -> dict[str, Any]:
    """A part of a content that is text: its type, and the key that holds the text."""
    properties = {"type": {"const": kind}, key: _TEXT}
    return {"type": "object", "required": ["type", key], "properties": properties}


def _typed(kind: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object of this type, with these fields (by default a text)."""
    fields = fields or {"text": _TEXT}
    return {
        "type": "object",
        "required": ["type", *fields],
        "properties": {"type": {"const": kind}, **fields},
    }


_ROLE = {"type": "string", "minLength": 1}
_PARTS = [
    _TEXT,
    *(_part(kind, key) for kind, key in TEXT_PARTS.items()),
    _part("prompt_embeds", "data"),
]
_PART_LIST = {"type": "array", "items": {"anyOf": _PARTS}}
_CONTENT = {"anyOf": [_TEXT, {"type": "null"}, _PART_LIST]}
#: Of reasoning, whose parts may be of any type.
_TEXTS = {
    "anyOf": [
        {"type": "null"},
        {
            "type": "array",
            "items": {"type": "object", "required": ["text"], "properties": {"text": _TEXT}},
        },
    ]
}
_CALLS = {
    "anyOf": [
        {"type": "null"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["function"],
                "properties": {"function": {"type": "object"}},
            },
        },
    ]
}
_TURN = {
    "required": ["role"],
    "properties": {"role": _ROLE, "content": _CONTENT, "tool_calls": _CALLS},
    "anyOf": [
        {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
        {"properties": {"role": {"not": {"enum": list(SPEAKING)}}}},
    ],
}
_CALL_ID = {"call_id": _TEXT}
_OUTPUT = {"output": {"anyOf": [_TEXT, _PART_LIST]}}
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_ITEM = {
    "anyOf": [
        {
            "required": ["role", "content"],
            "properties": {"type": {"const": "message"}, "role": _ROLE, "content": _CONTENT},
        },
        _typed("function_call", {**_CALL_ID, "name": _TEXT, "arguments": _TEXT}),
        _typed("custom_tool_call", {**_CALL_ID, "name": _TEXT, "input": _TEXT}),
        *(_typed(kind, _CALL_ID | _OUTPUT) for kind in _OUTPUTS),
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"const": "reasoning"}, "content": _TEXTS, "summary": _TEXTS},
        },
    ]
}
_BLOCK = {
    "anyOf": [
        _part("text", "text"),
        _part("thinking", "thinking"),
        _typed("tool_use", {"id": _TEXT, "name": _TEXT, "input": {"type": "object"}}),
        _typed("tool_result", {"tool_use_id": _TEXT, "content": _TEXT}),
    ]
}

#: A message of OpenAI's chat completions.
Turn = Annotated[dict[str, Any], msgspec.Meta(extra_json_schema=_TURN)]
#: An item of the input of OpenAI's responses.
Item = Annotated[dict[str, Any], msgspec.Meta(extra_json_schema=_ITEM)]
#: A part of the content of Anthropic's messages.
Block = Annotated[dict[str, Any], msgspec.Meta(extra_json_schema=_BLOCK)]
