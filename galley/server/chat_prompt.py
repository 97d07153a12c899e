"""The prompt of a conversation, for every route that takes messages."""

from __future__ import annotations

from typing import Any

from galley.errors import InvalidRequest, Unsupported
from galley.server.context import Context


def render(
    ctx: Context,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    chat_template: str | None,
    chat_template_kwargs: dict[str, Any] | None,
    documents: list[dict[str, str]] | None = None,
) -> str:
    """The text that the model is given.

    Raises:
        InvalidRequest: messages that are none, a template that the request may not bring, or one
            that fails on these messages.
        Unsupported: the model has no chat template.
    """
    if chat_template is not None and not ctx.server.trust_request_chat_template:
        raise InvalidRequest(
            "chat_template is not accepted from requests: the server runs without "
            "--trust-request-chat-template.",
            field="chat_template",
        )
    if ctx.chat is None:
        raise Unsupported(
            "this model has no chat template; start with --chat-template, or use completions.",
            field="messages",
        )
    kwargs = {**ctx.server.default_chat_template_kwargs, **(chat_template_kwargs or {})}
    return ctx.chat.render(
        messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        chat_template=chat_template,
        documents=documents,
        kwargs=kwargs,
    )
