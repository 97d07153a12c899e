"""/score and /rerank: pairs of texts."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from galley.errors import InvalidRequest
from galley.frontend.scoring import PairEncoder, as_texts, check_pairs, compare, task_of
from galley.request import PoolingParams
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.errors import json_response
from galley.server.load_report import load_report
from galley.server.pooling import pooled, settings_of, usage_of
from galley.server.protocol.base import Usage
from galley.server.protocol.pooling import (
    RerankDocument,
    RerankResponse,
    RerankResult,
    RerankUsage,
    ScoreData,
    ScoreResponse,
    ScoringFields,
    check_count,
    rerank_reader,
    score_reader,
)
from galley.server.response_builder import to_json
from galley.server.router import GENERATION_ERRORS, Router


def routes(ctx: Context) -> Router:
    router = Router()
    if settings_of(ctx).score_kind is None:
        return router

    async def score(raw: Request) -> Response:
        """Scores of pairs of texts."""
        return await respond_score(ctx, raw, await ctx.body(raw))

    async def rerank(raw: Request) -> Response:
        """Documents in the order of how well they answer a query."""
        return await respond_rerank(ctx, raw, await ctx.body(raw))

    for path in ("/score", "/v1/score"):
        router.post(path, score_reader, response=ScoreResponse, errors=GENERATION_ERRORS)(score)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        router.post(path, rerank_reader, response=RerankResponse, errors=GENERATION_ERRORS)(rerank)
    return router


async def respond_score(ctx: Context, raw: Request, body: bytes) -> Response:
    """The answer to a body of /score."""
    request = ctx.parse(raw, score_reader, body)
    apply_priority_header(raw, request)
    model = await ctx.model_name(request.model)
    first_name, a, second_name, b = request.sides()
    first, second = as_texts(a, first_name), as_texts(b, second_name)
    check_count(second, second_name, ctx.caps)
    check_pairs(first, second, (first_name, second_name))
    id = request_id(raw, "score", request.request_id, ctx.caps.request_id)
    scores, usage = await _scores(ctx, raw, request, first, second, id, (first_name, second_name))
    response = ScoreResponse(
        id=id,
        created=int(time.time()),
        model=model,
        data=[ScoreData(index=i, score=score) for i, score in enumerate(scores)],
        usage=usage,
    )
    return json_response(to_json(response), headers=load_report(raw, ctx.metrics))


async def respond_rerank(ctx: Context, raw: Request, body: bytes) -> Response:
    """The answer to a body of /rerank."""
    request = ctx.parse(raw, rerank_reader, body)
    apply_priority_header(raw, request)
    model = await ctx.model_name(request.model)
    query, documents = as_texts(request.query, "query"), as_texts(request.documents, "documents")
    check_count(documents, "documents", ctx.caps)
    if (request.top_n or 0) < 0:
        raise InvalidRequest(f"top_n must be at least 0, got {request.top_n}.", field="top_n")
    id = request_id(raw, "rerank", request.request_id, ctx.caps.request_id)
    names = ("query", "documents")
    scores, usage = await _scores(ctx, raw, request, query, documents, id, names)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    shown = request.return_documents is not False
    results = [
        RerankResult(
            index=i,
            document=RerankDocument(documents[i]) if shown else None,
            relevance_score=scores[i],
        )
        for i in order[: request.top_n or len(order)]
    ]
    response = RerankResponse(
        id=id,
        model=model,
        usage=RerankUsage(usage.prompt_tokens, usage.total_tokens),
        results=results,
    )
    return json_response(to_json(response), headers=load_report(raw, ctx.metrics))


async def _scores(
    ctx: Context,
    raw: Request,
    request: ScoringFields,
    first: list[str],
    second: list[str],
    id: str,
    fields: tuple[str, str],
) -> tuple[list[float], Usage]:
    """The score of each pair."""
    settings, details = settings_of(ctx), ctx.server.enable_prompt_tokens_details
    params = PoolingParams(task=task_of(settings))
    if settings.score_kind == "cross-encoder":
        make = partial(_pairs, ctx, request, first, second)
        prompts = await asyncio.to_thread(make)
        outputs = await pooled(ctx, raw, request, prompts, params, id, field=fields[1])
        return [float(output.outputs.data[0]) for output in outputs], usage_of(outputs, details)
    texts = await asyncio.to_thread(partial(_cut, ctx, request, first, second))
    outputs = await pooled(ctx, raw, request, texts, params, id, field=fields[1])
    queries = [output.outputs.data for output in outputs[: len(first)]]
    scores = [
        compare(settings, queries[i if len(first) > 1 else 0], output.outputs.data)
        for i, output in enumerate(outputs[len(first) :])
    ]
    return scores, usage_of(outputs, details)


def _pairs(
    ctx: Context, request: ScoringFields, first: list[str], second: list[str]
) -> list[str | list[int]]:
    """Token ids of the pairs."""
    render = None
    if ctx.server.chat_template is not None and ctx.chat is not None:
        kwargs = dict(request.chat_template_kwargs or {})
        if request.instruction is not None:
            kwargs["instruction"] = request.instruction
        render = partial(_rendered, ctx, kwargs)
    elif request.instruction is not None:
        raise InvalidRequest(
            "instruction needs a template of pairs (--chat-template).", field="instruction"
        )
    encode = PairEncoder(ctx.require_tokenizer(), settings_of(ctx).segment, render)
    most, length = request.truncate_prompt_tokens, ctx.engine.limits.max_model_len
    most = length if most == -1 else most
    cuts = request.max_tokens_per_query, request.max_tokens_per_doc
    queries = first if len(first) > 1 else first * len(second)
    return [encode(q, d, most, *cuts) for q, d in zip(queries, second, strict=True)]


def _rendered(ctx: Context, kwargs: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    assert ctx.chat is not None
    return ctx.chat.render(messages, add_generation_prompt=True, kwargs=kwargs)


def _cut(
    ctx: Context, request: ScoringFields, first: list[str], second: list[str]
) -> list[str | list[int]]:
    """The texts, cut to the tokens that the request allows each."""
    if request.instruction is not None:
        raise InvalidRequest("instruction is of cross-encoders alone.", field="instruction")

    def cut(texts: list[str], most: int) -> list[str | list[int]]:
        if most <= 0:
            return list(texts)
        tokenizer = ctx.require_tokenizer()
        return [tokenizer.first_tokens(text, most) for text in texts]

    return cut(first, request.max_tokens_per_query) + cut(second, request.max_tokens_per_doc)
