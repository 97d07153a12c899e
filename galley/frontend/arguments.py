"""Arguments of `LLM` as users give them, in the one form that the rest takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from galley.errors import InvalidRequest, Unsupported
from galley.frontend.prompts import Prompt

Message = Mapping[str, Any]
Prompts = Prompt | Sequence[Prompt]


def as_list(prompts: Prompts) -> list[Prompt]:
    """Several prompts, where one may have been given."""
    if isinstance(prompts, str | Mapping):
        return [prompts]  # type: ignore[list-item]
    listed = list(prompts)
    if listed and all(isinstance(item, int) for item in listed):
        return [listed]  # type: ignore[list-item]
    return listed  # type: ignore[return-value]


def as_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    """Several conversations, where one may have been given."""
    if not messages:
        raise InvalidRequest("messages must not be empty.", field="messages")
    if isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]


def tokenization(kwargs: Mapping[str, Any] | None) -> tuple[bool, int | None]:
    """`tokenization_kwargs` as (add_special_tokens, truncate_prompt_tokens)."""
    given = dict(kwargs or {})
    found = bool(given.pop("add_special_tokens", True)), given.pop("truncate_prompt_tokens", None)
    for name in given:
        raise Unsupported(f"tokenization_kwargs: {name} is not supported.", field=name)
    return found


def refuse_lora(lora_request: object) -> None:
    if lora_request is not None:
        raise Unsupported("lora_request is not supported yet.", field="lora_request")
