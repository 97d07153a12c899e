"""The accepted forms of a prompt: text, token ids, or a dict of either (as in vLLM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

from galley.errors import InvalidRequest, Unsupported


class TextPrompt(TypedDict):
    """A prompt to tokenise; KV blocks are shared only between prompts of equal `cache_salt`."""

    prompt: str
    cache_salt: NotRequired[str]


class TokensPrompt(TypedDict):
    """A tokenised prompt; `prompt` is its text, if the caller has it."""

    prompt_token_ids: Sequence[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


class EmbedsPrompt(TypedDict):
    """Embedding rows [n, hidden] in place of token ids (--enable-prompt-embeds): an array, or a
    tensor of torch. With `prompt_token_ids`, `embeds_at` says where among them the rows stand; or
    there is a row for each of them, and those where `prompt_is_token_ids` is False are used.
    """

    prompt_embeds: Any
    prompt: NotRequired[str]
    prompt_token_ids: NotRequired[Sequence[int]]
    embeds_at: NotRequired[Sequence[int]]
    prompt_is_token_ids: NotRequired[Sequence[bool]]
    cache_salt: NotRequired[str]


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt | EmbedsPrompt

_KNOWN = {
    *("prompt", "prompt_token_ids", "cache_salt"),
    *("prompt_embeds", "embeds_at", "prompt_is_token_ids"),
}


class ParsedPrompt(TypedDict):
    """The common form: `token_ids` is None if `text` has to be tokenised, or if `embeds` are the
    whole prompt.
    """

    text: str | None
    token_ids: Sequence[int] | None
    cache_salt: str | None
    embeds: NotRequired[Any]
    embeds_at: NotRequired[Sequence[int] | None]


def parse_prompt(prompt: Prompt) -> ParsedPrompt:
    """Read any accepted form.

    Raises:
        InvalidRequest: not a prompt, or a dict without "prompt" or "prompt_token_ids".
        Unsupported: a key of vLLM's prompt dicts that has no effect here.
    """
    if isinstance(prompt, str):
        return {"text": prompt, "token_ids": None, "cache_salt": None}
    if not isinstance(prompt, Mapping):
        return {"text": None, "token_ids": _ids(prompt), "cache_salt": None}
    for key, value in prompt.items():
        if key not in _KNOWN and value is not None:
            raise Unsupported(f"prompt key {key!r} is not supported.", field="prompt")
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    salt = prompt.get("cache_salt")
    if text is not None and not isinstance(text, str):
        raise InvalidRequest("prompt must be text.", field="prompt")
    embeds = prompt.get("prompt_embeds")
    if text is None and ids is None and embeds is None:
        raise InvalidRequest('a prompt dict needs "prompt" or "prompt_token_ids".', field="prompt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise InvalidRequest("cache_salt must be a non-empty string.", field="cache_salt")
    at = cast("Sequence[int] | None", prompt.get("embeds_at"))
    mask = cast("Sequence[bool] | None", prompt.get("prompt_is_token_ids"))
    if mask is not None:
        embeds, at = _chosen_rows(embeds, mask, ids)
    return {
        "text": text,
        "token_ids": None if ids is None else _ids(ids),
        "cache_salt": salt,
        "embeds": embeds,
        "embeds_at": at,
    }


def _chosen_rows(rows: Any, mask: Sequence[bool], ids: Any) -> tuple[Any, Sequence[int] | None]:
    """The rows where `mask` is False, and their positions. Raises InvalidRequest."""
    if rows is None or ids is None or not len(rows) == len(ids) == len(mask):
        raise InvalidRequest(
            "prompt_is_token_ids needs prompt_embeds and prompt_token_ids of its length.",
            field="prompt_is_token_ids",
        )
    at = [i for i, is_id in enumerate(mask) if not is_id]
    return (rows[at], at) if at else (None, None)


def _ids(ids: Any) -> Sequence[int]:
    if not isinstance(ids, Sequence) or isinstance(ids, bytes | bytearray):
        raise InvalidRequest(
            f"prompt must be text, a list of token ids or a dict, got {type(ids).__name__}.",
            field="prompt",
        )
    return ids
