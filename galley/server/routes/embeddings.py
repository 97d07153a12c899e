"""/v1/embeddings, and Cohere's /v2/embed."""

from __future__ import annotations

import base64
from typing import Any, cast

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from galley.errors import InvalidRequest
from galley.outputs import PoolingRequestOutput
from galley.request import PoolingParams
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.errors import json_response
from galley.server.load_report import load_report
from galley.server.pooling import pooled, respond_with_numbers, settings_of
from galley.server.protocol.embeddings import (
    CohereEmbedRequest,
    CohereEmbedResponse,
    CohereMeta,
    CohereUnits,
    EmbeddingData,
    EmbeddingResponse,
    cohere_reader,
    reader,
)
from galley.server.protocol.pooling import PoolingFields
from galley.server.response_builder import to_json
from galley.server.router import GENERATION_ERRORS, Router

#: Cohere's names of input types → those that checkpoints give the texts before an input.
_INPUT_TYPES = {
    "search_query": ("query", "s2p_query"),
    "search_document": ("document", "passage", "corpus"),
    "classification": ("Classification",),
    "clustering": ("Clustering",),
}


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post("/v1/embeddings", reader, response=EmbeddingResponse, errors=GENERATION_ERRORS)
    async def create_embedding(raw: Request) -> Response:
        """Vectors of a text, or of several; or of conversations."""
        return await respond(ctx, raw, await ctx.body(raw))

    @router.post("/v2/embed", cohere_reader, response=CohereEmbedResponse, errors=GENERATION_ERRORS)
    async def cohere_embed(raw: Request) -> Response:
        """Vectors of texts, as Cohere's API has them."""
        request = await ctx.read(raw, cohere_reader)
        apply_priority_header(raw, request)
        await ctx.model_name(request.model)
        texts = request.contents(ctx.caps)
        before = settings_of(ctx).text_before(_prompt_name(ctx, request.input_type))
        id = request_id(raw, "embd", None, ctx.caps.request_id)
        params = PoolingParams(task="embed", dimensions=request.output_dimension)
        field = "texts" if request.texts is not None else "inputs"
        prompts = [before + text for text in texts]
        outputs = await pooled(ctx, raw, _fields(request), prompts, params, id, field=field)
        types = request.embedding_types or ["float"]
        answer = CohereEmbedResponse(
            id=id,
            embeddings={kind: [_typed(output, kind) for output in outputs] for kind in types},
            texts=texts,
            meta=CohereMeta(CohereUnits(sum(len(o.prompt_token_ids) for o in outputs))),
        )
        return json_response(to_json(answer), headers=load_report(raw, ctx.metrics))

    return router


async def respond(ctx: Context, raw: Request, body: bytes) -> Response:
    """The answer to a body of /v1/embeddings."""
    request = ctx.parse(raw, reader, body)

    def entry(index: int, embedding: Any) -> EmbeddingData:
        return EmbeddingData(index=index, embedding=embedding)

    return await respond_with_numbers(ctx, raw, request, "embed", "embd", EmbeddingResponse, entry)


def _fields(request: CohereEmbedRequest) -> PoolingFields:
    """The request's truncation and priority, in vLLM's names."""
    keep = request.max_tokens
    if keep is None and request.truncate != "NONE":
        keep = -1
    side: Any = "left" if request.truncate == "START" else "right"
    return PoolingFields(
        model=request.model,
        priority=request.priority,
        truncate_prompt_tokens=keep,
        truncation_side=side,
    )


def _prompt_name(ctx: Context, input_type: str | None) -> str | None:
    """The name of the text before an input. Raises InvalidRequest for an unknown type."""
    prompts = settings_of(ctx).prompts
    if input_type is None or input_type in prompts:
        return input_type
    if input_type not in _INPUT_TYPES:
        raise InvalidRequest(f"input_type {input_type!r} is not known.", field="input_type")
    return next((name for name in _INPUT_TYPES[input_type] if name in prompts), None)


def _typed(output: PoolingRequestOutput, kind: str) -> list[float | int] | str:
    """A vector in one of Cohere's types."""
    vector = output.outputs.data
    if kind == "float":
        return cast(list[float | int], vector.tolist())
    if kind == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    signs = np.packbits(vector > 0)
    if kind == "binary":
        return cast(list[float | int], (signs.astype(np.int16) - 128).tolist())
    return cast(list[float | int], signs.tolist())
