"""/tokenize, /detokenize and, with its flag, /tokenizer_info."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from galley.errors import InvalidRequest
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.protocol.tokenize import (
    AddedToken,
    DetokenizeResponse,
    TokenizeResponse,
    TokenizerInfo,
    detokenize_reader,
    tokenize_reader,
)
from galley.server.rendering import render
from galley.server.response_builder import to_json
from galley.server.router import MODEL_ERRORS, Router


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post("/tokenize", tokenize_reader, response=TokenizeResponse, errors=MODEL_ERRORS)
    async def tokenize(raw: Request) -> Response:
        """Token ids of a text, or of a conversation."""
        request = await ctx.read(raw, tokenize_reader)
        await ctx.model_name(request.model)
        request.check()
        tokenizer = ctx.require_tokenizer()
        special = request.add_special_tokens
        if request.messages is not None:
            text = await render(
                ctx,
                request.messages,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
                chat_template=request.chat_template,
                chat_template_kwargs=request.chat_template_kwargs,
                tools=[each.tool().for_template() for each in request.tools or ()] or None,
            )
            special = bool(special)
        else:
            text = request.prompt or ""
            special = special is None or special
        ids = await asyncio.to_thread(tokenizer.encode, text, special)
        names = None
        if request.return_token_strs:
            names = [tokenizer.id_to_token(i) or "" for i in ids]
        length = ctx.engine.limits.max_model_len
        return json_response(to_json(TokenizeResponse(len(ids), length, ids, names)))

    @router.post("/detokenize", detokenize_reader, response=DetokenizeResponse, errors=MODEL_ERRORS)
    async def detokenize(raw: Request) -> Response:
        """The text of token ids, special tokens included."""
        request = await ctx.read(raw, detokenize_reader)
        await ctx.model_name(request.model)
        tokenizer = ctx.require_tokenizer()
        size = ctx.engine.limits.vocab_size
        worst = max(request.tokens, default=0)
        if worst >= size:
            raise InvalidRequest(
                f"Token id {worst} is out of vocabulary (size {size}).", field="tokens"
            )
        text = await asyncio.to_thread(tokenizer.decode, request.tokens, False)
        return json_response(to_json(DetokenizeResponse(text)))

    if ctx.server.enable_tokenizer_info_endpoint:

        @router.get("/tokenizer_info", response=TokenizerInfo)
        async def tokenizer_info(raw: Request) -> Response:
            """Special tokens, length and chat template."""
            return json_response(to_json(_info(ctx)))

    return router


def _info(ctx: Context) -> TokenizerInfo:
    tokenizer = ctx.require_tokenizer()
    added = {
        i: AddedToken(text, i in tokenizer.special_ids)
        for i, text in tokenizer.added_tokens.items()
    }
    return TokenizerInfo(
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        model_max_length=ctx.engine.limits.max_model_len,
        vocab_size=tokenizer.vocab_size,
        added_tokens_decoder=added,
        chat_template=tokenizer.chat_templates.get("default"),
    )
