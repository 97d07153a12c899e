"""Tokens that a structural tag names: formats of the types `token`, `any_tokens` and
`token_triggered_tags`, and `token` as the beginning or the end of a tag (xgrammar's forms).

Such a token is a special one, which no text is made of. The front end knows their ids (`numbered`);
a grammar gets each as a text of its own (`as_texts`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from galley.errors import InvalidRequest

#: Fields that hold further formats.
_INNER = ("format", "elements", "content", "tags", "begin", "end")
#: Type of a format → its fields that name tokens.
_FIELDS = {
    "token": ("token",),
    "exclude_token": ("exclude_tokens",),
    "any_tokens": ("exclude_tokens",),
    "token_triggered_tags": ("trigger_tokens", "exclude_tokens"),
}
_MAY_NAME = re.compile(r'"token"|_tokens?"')


def numbered(
    tag: str, token_id: Callable[[str], int | None], special: frozenset[int], field: str
) -> str:
    """A structural tag whose tokens are given by their ids; what is malformed stays as it is.

    Args:
        special: ids of special tokens.

    Raises:
        InvalidRequest: a token that is not a special one of the model.
    """
    if not _MAY_NAME.search(tag):
        return tag
    try:
        root = msgspec.json.decode(tag)
    except (msgspec.DecodeError, RecursionError):
        return tag

    def id_of(token: Any) -> int:
        found = token_id(token) if isinstance(token, str) else token
        if not isinstance(found, int) or isinstance(found, bool) or found not in special:
            raise InvalidRequest(
                f"{field}: the token {token!r:.100} is not a special token of the model.",
                field=field,
            )
        return found

    for node in _formats(root):
        for name in _FIELDS.get(node.get("type", ""), ()):
            value = node.get(name)
            if isinstance(value, list):
                node[name] = [id_of(token) for token in value]
            elif value is not None:
                node[name] = id_of(value)
    return msgspec.json.encode(root).decode()


def as_texts(root: Any) -> dict[str, int]:
    """Change tokens into texts of private characters, in place; returns text → id."""
    ids: dict[str, int] = {}

    def text_of(token: Any) -> Any:
        if not isinstance(token, int):
            return token
        text = f"\ue000{token}\ue001"
        ids[text] = token
        return text

    for node in _formats(root):
        for name in ("begin", "end"):
            edge = node.get(name)
            if isinstance(edge, dict) and edge.get("type") == "token":
                node[name] = text_of(edge.get("token"))
        kind = node.get("type")
        if kind == "token":
            node.update(type="const_string", value=text_of(node.pop("token", None)))
        elif kind == "any_tokens":
            node["type"] = "any_text"
        elif kind == "token_triggered_tags":
            triggers = node.pop("trigger_tokens", None)
            if isinstance(triggers, list):
                triggers = [text_of(token) for token in triggers]
            node.update(type="triggered_tags", triggers=triggers)
    return ids


def _formats(root: Any) -> Iterator[dict[str, Any]]:
    """The formats in a structural tag, not those in schemas."""
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            yield node
            stack.extend(node[name] for name in _INNER if name in node)
