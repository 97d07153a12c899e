"""/invocations of a server that pools: SageMaker's single path to its endpoints."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from galley.errors import InvalidRequest
from galley.server.context import Context
from galley.server.pooling import settings_of
from galley.server.protocol.embeddings import EmbeddingResponse, reader
from galley.server.protocol.pooling import (
    ClassificationResponse,
    RerankResponse,
    ScoreResponse,
    classification_reader,
    rerank_reader,
    score_reader,
)
from galley.server.router import GENERATION_ERRORS, Router
from galley.server.routes import embeddings, pooling, scoring
from galley.server.sagemaker_sessions import session_reply

_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post(
        "/invocations",
        (reader, classification_reader, rerank_reader, score_reader),
        response=(EmbeddingResponse, ClassificationResponse, RerankResponse, ScoreResponse),
        errors=GENERATION_ERRORS,
    )
    async def invocations(raw: Request) -> Response:
        """Answer as embeddings or classification (a body with `input` or `messages`), rerank
        (`query`) or score; a body of `requestType` creates or closes a session.
        """
        body = await ctx.body(raw)
        try:
            keys: dict[str, Any] = _keys.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            keys = {}
        if (reply := session_reply(ctx.sessions, raw, keys)) is not None:
            return reply
        tasks = settings_of(ctx).tasks
        if "input" in keys or "messages" in keys:
            answer = embeddings.respond if "embed" in tasks else pooling.respond
            return await answer(ctx, raw, body)
        if "query" in keys:
            return await scoring.respond_rerank(ctx, raw, body)
        if keys.keys() & {"text_1", "data_1", "queries"}:
            return await scoring.respond_score(ctx, raw, body)
        raise InvalidRequest(
            "The request body must be a JSON object with one of input, messages, query, text_1."
        )

    return router
