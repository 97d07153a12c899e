"""Embedding rows in requests: of whole prompts, and between the texts of a conversation."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from galley.errors import InvalidRequest, Unsupported
from galley.frontend.prompts import EmbedsPrompt
from galley.server.context import Context

Messages = list[dict[str, Any]]
PART = "prompt_embeds"


async def read_embeds(ctx: Context, files: list[str]) -> list[EmbedsPrompt]:
    """Prompts of base64 files of `torch.save`. Raises InvalidRequest, Unsupported."""
    return [{"prompt_embeds": await _rows(ctx, file)} for file in files]


async def _rows(ctx: Context, file: str) -> Any:
    limits = ctx.engine.limits
    if not limits.embed_columns:
        raise Unsupported("prompt_embeds needs --enable-prompt-embeds.", field=PART)
    from galley.frontend.prompt_embeds import decoded  # numpy: for such prompts alone

    return await asyncio.to_thread(decoded, file, limits.embed_columns, limits.max_model_len)


class EmbedParts:
    """The parts of type `prompt_embeds` of a conversation: the template gets a mark for each, and
    the prompt gets the rows in place of the marks.

    Attributes:
        messages: with marks.
    """

    def __init__(self, messages: Messages) -> None:
        self._nonce = uuid.uuid4().hex
        self._files: list[str] = []
        self.messages = [self._marked(message) for message in messages]

    def _marked(self, message: Any) -> Any:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            return message
        parts = [self._mark(part) if _is_rows(part) else part for part in content]
        return {**message, "content": parts}

    def _mark(self, part: dict[str, Any]) -> dict[str, str]:
        file = part.get("data")
        if not isinstance(file, str):
            raise InvalidRequest(
                "messages: a part of prompt_embeds needs `data`.", field="messages"
            )
        self._files.append(file)
        return {"type": "text", "text": f"[{self._nonce}]"}

    async def put_into(
        self, ctx: Context, prompt: str, add_special_tokens: bool
    ) -> str | EmbedsPrompt:
        """The prompt that the engine is given for the text of the template."""
        if not self._files:
            return prompt
        texts = prompt.split(f"[{self._nonce}]")
        if len(texts) != len(self._files) + 1:
            raise InvalidRequest(
                "messages: the chat template leaves parts of prompt_embeds out, or repeats them.",
                field="messages",
            )
        import numpy as np

        tokenizer = ctx.require_tokenizer()
        ids = tokenizer.encode(texts[0], add_special_tokens)
        at: list[int] = []
        rows = []
        for file, text in zip(self._files, texts[1:], strict=True):
            rows.append(await _rows(ctx, file))
            at += range(len(ids), len(ids) + len(rows[-1]))
            ids += [0] * len(rows[-1]) + tokenizer.encode(text, False)
        return {
            "prompt_token_ids": ids,
            "prompt_embeds": np.concatenate(rows),
            "embeds_at": at,
        }


def _is_rows(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == PART
