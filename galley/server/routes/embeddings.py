"""/v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from galley.errors import InvalidRequest
from galley.frontend.pooling import PendingVector
from galley.frontend.prompts import Prompt
from galley.request import PoolingParams, PoolingRequestOutput
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.errors import json_response
from galley.server.load_report import load_report
from galley.server.protocol.base import PromptTokensDetails, Usage
from galley.server.protocol.embeddings import (
    EmbeddingData,
    EmbeddingRequest,
    EmbeddingResponse,
    check_embedding,
    reader,
)
from galley.server.response_builder import to_json
from galley.server.router import GENERATION_ERRORS, Router
from galley.server.sampling import LONG_TEXT
from galley.server.stream import until_disconnect

_BYTE_ORDERS = {"native": "=", "little": "<", "big": ">"}
_DTYPES = {"float32": "f4", "float16": "f2"}


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post("/v1/embeddings", reader, response=EmbeddingResponse, errors=GENERATION_ERRORS)
    async def create_embedding(raw: Request) -> Response:
        """Vectors of a text, or of several."""
        request = await ctx.read(raw, reader)
        apply_priority_header(raw, request)
        inputs = check_embedding(request, ctx.caps)
        model = ctx.model_name(request.model)
        id = request_id(raw, "embd", request.request_id, ctx.caps.request_id)
        outputs = await until_disconnect(raw.receive, _embed(ctx, request, inputs, id))
        response = EmbeddingResponse(
            id=id,
            created=int(time.time()),
            model=model,
            data=[
                EmbeddingData(index=i, embedding=_encoded(output.outputs.data, request))
                for i, output in enumerate(outputs)
            ],
            usage=_usage(outputs, ctx.server.enable_prompt_tokens_details),
        )
        return json_response(to_json(response), headers=load_report(raw, ctx.metrics))

    return router


async def _embed(
    ctx: Context, request: EmbeddingRequest, inputs: list[str | list[int]], id: str
) -> list[PoolingRequestOutput]:
    """The outputs of all inputs, or none: the failure of one aborts the others."""
    params = PoolingParams(
        use_activation=request.use_activation,
        dimensions=request.dimensions,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )
    prompts = await _tokenized(ctx, request, inputs)
    pending: list[PendingVector] = []
    try:
        for i, prompt in enumerate(prompts):
            ctx.admit()
            pending.append(_start(ctx, request, prompt, params, f"{id}-{i}"))
        return [await vector.output() for vector in pending]
    finally:
        for vector in pending:
            vector.close()


async def _tokenized(
    ctx: Context, request: EmbeddingRequest, inputs: list[str | list[int]]
) -> list[str | list[int]]:
    """Token ids of many or long texts, made in a thread; others are tokenised when they start.

    Texts that may be truncated stay texts, as the tokens that the tokenizer adds are kept.
    """
    size = sum(len(text) for text in inputs if isinstance(text, str))
    tokenizer = ctx.tokenizer
    if size < LONG_TEXT or tokenizer is None or request.truncate_prompt_tokens is not None:
        return inputs

    def encode() -> list[str | list[int]]:
        special = request.add_special_tokens
        return [tokenizer.encode(x, special) if isinstance(x, str) else x for x in inputs]

    return await asyncio.to_thread(encode)


def _start(
    ctx: Context,
    request: EmbeddingRequest,
    given: str | list[int],
    params: PoolingParams,
    id: str,
) -> PendingVector:
    """Submit one input to the engine. Raises InvalidRequest, Unsupported, EngineDead."""
    key = "prompt" if isinstance(given, str) else "prompt_token_ids"
    prompt: dict[str, Any] = {key: given}
    if request.cache_salt is not None:
        prompt["cache_salt"] = request.cache_salt
    try:
        return ctx.engine.pool(
            cast(Prompt, prompt),
            params,
            id,
            priority=request.priority,
            add_special_tokens=request.add_special_tokens,
            truncation_side=request.truncation_side or "right",
        )
    except InvalidRequest as error:
        field = "input" if error.field == "prompt" else error.field
        raise InvalidRequest(error.message, field=field) from None


def _encoded(vector: NDArray[np.float32], request: EmbeddingRequest) -> list[float] | str:
    if request.encoding_format == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    dtype = _BYTE_ORDERS[request.endianness] + _DTYPES[request.embed_dtype]
    return base64.b64encode(vector.astype(dtype).tobytes()).decode()


def _usage(outputs: list[PoolingRequestOutput], details: bool) -> Usage:
    tokens = sum(len(output.prompt_token_ids) for output in outputs)
    cached = sum(output.num_cached_tokens for output in outputs)
    return Usage(
        prompt_tokens=tokens,
        total_tokens=tokens,
        prompt_tokens_details=PromptTokensDetails(cached) if details else None,
    )
