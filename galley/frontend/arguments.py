"""Normalises the arguments of `LLM`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from galley.errors import InvalidRequest, Unsupported
from galley.frontend.prompts import Prompt
from galley.request import LoRARequest

Message = Mapping[str, Any]
#: An adapter for all prompts, or one for each.
LoRAs = LoRARequest | Sequence[LoRARequest | None] | None
Prompts = Prompt | Sequence[Prompt]


def as_list(prompts: Prompts) -> list[Prompt]:
    """A list of prompts, from one or several."""
    if isinstance(prompts, str | Mapping):
        return [prompts]  # type: ignore[list-item]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray):
        raise InvalidRequest(
            f"prompts must be text, token ids, dicts or a list; got {type(prompts).__name__}.",
            field="prompts",
        )
    items = list(prompts)
    for item in items:
        if isinstance(item, bytes | bytearray):
            raise InvalidRequest("a prompt must be text; got bytes. Decode them.", field="prompts")
    if items and all(isinstance(item, int) for item in items):
        return [items]  # type: ignore[list-item]
    return items  # type: ignore[return-value]


def prefixed(text: str, prompts: list[Prompt]) -> list[Prompt]:
    """Prompts with `text` before each that is a text; token ids stay as they are."""
    if not text:
        return prompts
    joined: list[Any] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            joined.append(text + prompt)
        elif isinstance(prompt, Mapping) and isinstance(prompt.get("prompt"), str):
            joined.append({**prompt, "prompt": text + str(prompt.get("prompt"))})
        else:
            joined.append(prompt)
    return joined


def as_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    """A list of conversations, from one or several."""
    if isinstance(messages, str):
        raise InvalidRequest(
            'messages must be a list of {"role": …, "content": …}; got text. '
            "LLM.generate takes text.",
            field="messages",
        )
    if not messages:
        raise InvalidRequest("messages must not be empty.", field="messages")
    if isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]


def tokenization(kwargs: Mapping[str, Any] | None) -> tuple[bool, int | None]:
    """`tokenization_kwargs` as (add_special_tokens, truncate_prompt_tokens)."""
    rest = dict(kwargs or {})
    options = bool(rest.pop("add_special_tokens", True)), rest.pop("truncate_prompt_tokens", None)
    for name in rest:
        raise Unsupported(f"tokenization_kwargs: {name} is not supported.", field=name)
    return options


def per_prompt(given: LoRAs, count: int) -> list[LoRARequest | None]:
    """The adapter of each of `count` prompts. Raises InvalidRequest."""
    if given is not None and not isinstance(given, LoRARequest | Sequence):
        raise InvalidRequest(
            f"lora_request must be a LoRARequest, got {type(given).__name__}.",
            field="lora_request",
        )
    requests = [given] * count if given is None or isinstance(given, LoRARequest) else list(given)
    if len(requests) != count:
        raise InvalidRequest(
            f"{count} prompts but {len(requests)} lora_requests.", field="lora_request"
        )
    for request in requests:
        if request is not None and not isinstance(request, LoRARequest):
            raise InvalidRequest(
                f"lora_request must be a LoRARequest, got {type(request).__name__}.",
                field="lora_request",
            )
    return requests
