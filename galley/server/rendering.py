"""Prompts that the server builds: from a conversation by its template, or for infilling."""

from __future__ import annotations

import asyncio
import functools
import logging
from functools import partial
from typing import Any

from galley.errors import InvalidRequest, Unsupported
from galley.server.context import Context

logger = logging.getLogger(__name__)

#: Roles that chat templates know. Others go to the template as they are.
ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))


@functools.lru_cache(64)
def _warn_role(role: str) -> None:
    """Log a role once."""
    logger.warning("messages: the role %r is none of %s.", role, ", ".join(sorted(ROLES)))


async def render(
    ctx: Context,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    chat_template: str | None,
    chat_template_kwargs: dict[str, Any] | None,
    tools: list[dict[str, Any]] | None = None,
    documents: list[dict[str, str]] | None = None,
) -> str:
    """The text that the model is given.

    A template of a request, and a very large conversation, are rendered in a child process with
    limits; a thread waits for it, one request at a time, so that the event loop does not.

    Raises:
        InvalidRequest: messages that are not valid, a template that the request may not bring,
            or one that fails on these messages or exceeds a limit.
        Unsupported: the model has no chat template.
    """
    if chat_template is not None and not ctx.server.trust_request_chat_template:
        raise InvalidRequest(
            "chat_template is not accepted from requests: the server runs without "
            "--trust-request-chat-template.",
            field="chat_template",
        )
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role not in ROLES:
            _warn_role(role[:50])
    if ctx.tokenizer is None:
        ctx.require_tokenizer()
    if ctx.chat is None:
        raise Unsupported(
            "this model has no chat template; start with --chat-template, or use completions.",
            field="messages",
        )
    variables: dict[str, Any] = {
        "chat_template": chat_template,
        "tools": tools,
        "documents": documents,
        "kwargs": {**ctx.server.default_chat_template_kwargs, **(chat_template_kwargs or {})},
    }
    rendering = partial(
        ctx.chat.render,
        messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        **variables,
    )
    if ctx.chat.is_quick(messages, **variables):
        return rendering()
    return await asyncio.get_running_loop().run_in_executor(ctx.template_thread, rendering)


def infill_prompt(ctx: Context, prompt: str | list[int], suffix: str) -> list[int]:
    """Token ids that ask for what stands between `prompt` and `suffix`.

    Raises:
        Unsupported: the tokenizer names no fill-in-the-middle tokens.
    """
    tokenizer = ctx.require_tokenizer()
    marks = tokenizer.fim
    if marks is None:
        raise Unsupported(
            "suffix is not supported by this model: its tokenizer has no fill-in-the-middle "
            "tokens.",
            field="suffix",
        )
    begin: list[int] = []
    if isinstance(prompt, str):
        begin = [i for i in tokenizer.encode("", True)[:1] if i == tokenizer.bos_token_id]
        prompt = tokenizer.encode(prompt, False)
    return begin + marks.prompt(prompt, tokenizer.encode(suffix, False))
