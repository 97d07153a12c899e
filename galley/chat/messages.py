"""Converts messages from the APIs' form to the form that templates expect. Knows no template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from galley.chat.content_format import ContentFormat
from galley.errors import InvalidRequest, Unsupported

Message = dict[str, Any]

#: Types of content parts that are text → the key that holds it.
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
#: Roles whose messages are nothing without content; an assistant's may hold calls alone.
SPEAKING = ("system", "developer", "user")
#: Names under which a message's reasoning travels; templates read different ones.
_REASONING = ("reasoning_content", "reasoning", "thinking")


def prepare(messages: list[Message], content_format: ContentFormat) -> list[Message]:
    """Checked copies for a template; nothing of the caller's is changed.

    Content is one text ("string": parts joined by line feeds), a list of text parts ("openai"), or
    ("either") as the caller has it, but one text for the result of a tool.
    Arguments of tool calls, which the API spells as JSON text, become objects (an empty one if
    the model has written invalid JSON, so that the conversation can continue), and reasoning is
    set under every name that templates read.

    Raises:
        InvalidRequest: not a list of messages; names the place ("messages[2].content[0]").
        Unsupported: a content part that is no text, by its type.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message.", field="messages")
    try:
        return [
            _message(message, f"messages[{i}]", content_format)
            for i, message in enumerate(messages)
        ]
    except RecursionError:
        raise InvalidRequest("messages are nested too deeply.", field="messages") from None


def _message(message: Any, where: str, content_format: ContentFormat) -> Message:
    message = _plain(message)
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object.", field="messages")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"{where}.role must be a non-empty text.", field="messages")
    content = message.get("content")
    if content is None and role in SPEAKING:
        raise InvalidRequest(f"{where}.content is required of role {role}.", field="messages")
    texts = _texts(content, f"{where}.content")
    is_text = not isinstance(content, list) or role == "tool"
    if content_format == "string" or (content_format == "either" and is_text):
        message["content"] = "\n".join(texts)
    else:
        message["content"] = [{"type": "text", "text": text} for text in texts]
    if message.get("tool_calls") is None:
        message.pop("tool_calls", None)
    else:
        _parse_arguments(message["tool_calls"], f"{where}.tool_calls")
    reasoning = next((message[k] for k in _REASONING if message.get(k) is not None), None)
    if reasoning is not None:
        message |= dict.fromkeys(_REASONING, reasoning)
    return message


def _texts(content: Any, where: str) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a text or a list of parts.", field="messages")
    return [_part_text(part, f"{where}[{i}]") for i, part in enumerate(content)]


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise InvalidRequest(
            f"{where} must be a text or an object with a `type`.", field="messages"
        )
    if kind not in TEXT_PARTS:
        raise Unsupported(
            f"{where}: parts of type {kind:.50} are not supported: only text is available yet.",
            field="messages",
        )
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.{TEXT_PARTS[kind]} must be a text.", field="messages")
    return text


def _parse_arguments(tool_calls: Any, where: str) -> None:
    if not isinstance(tool_calls, list):
        raise InvalidRequest(f"{where} must be a list.", field="messages")
    for i, call in enumerate(tool_calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise InvalidRequest(f"{where}[{i}].function must be an object.", field="messages")
        function["arguments"] = _object(function.get("arguments"))


def _object(arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {}
    return arguments if isinstance(arguments, dict) else {}


def developer_as_system(messages: list[Message], content_format: ContentFormat) -> list[Message]:
    """Prepared messages for a template that does not know developers: their turns and the system's
    become one system turn at the start, where templates expect it.
    """
    if all(message["role"] != "developer" for message in messages):
        return messages
    roles = ("system", "developer")
    contents = [message["content"] for message in messages if message["role"] in roles]
    rest = [message for message in messages if message["role"] not in roles]
    if content_format == "openai":
        content: Any = [part for parts in contents for part in parts]
    else:
        texts = (_joined(content) for content in contents)
        content = "\n\n".join(text for text in texts if text)
    return [{"role": "system", "content": content}, *rest]


def _joined(content: str | list[dict[str, str]]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content)


def _plain(value: Any) -> Any:
    """A copy of plain JSON data: templates must not meet objects with methods of their own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    raise InvalidRequest(
        f"messages must be plain data, not {type(value).__name__}.", field="messages"
    )
