"""/generative_scoring: how likely a label is after a query and each of several items."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request
from starlette.responses import Response

from galley.frontend.prompts import TokensPrompt
from galley.outputs import Logprob, RequestOutput
from galley.request import RequestOutputKind, SamplingParams
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.errors import json_response
from galley.server.load_report import load_report
from galley.server.protocol.base import Usage
from galley.server.protocol.generative_scoring import (
    GenerativeScore,
    GenerativeScoringRequest,
    GenerativeScoringResponse,
    reader,
)
from galley.server.response_builder import to_json
from galley.server.router import GENERATION_ERRORS, Router
from galley.server.stream import OutputStream, collect, start_all, until_disconnect

if TYPE_CHECKING:
    from galley.text import Tokenizer


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post(
        "/generative_scoring", reader, response=GenerativeScoringResponse, errors=GENERATION_ERRORS
    )
    async def score(raw: Request) -> Response:
        """The probability of the first label token after the query and each item."""
        request = await ctx.read(raw, reader)
        apply_priority_header(raw, request)
        model = await ctx.model_name(request.model)
        request.check(ctx.engine.limits.vocab_size, ctx.caps)
        id = request_id(raw, "generative-scoring", request.request_id, ctx.caps.request_id)
        prompts = await asyncio.to_thread(prompts_of, request, ctx.require_tokenizer)
        outputs = await until_disconnect(raw.receive, _outputs(ctx, request, prompts, id))
        response = GenerativeScoringResponse(
            id=id,
            created=int(time.time()),
            model=model,
            data=[
                GenerativeScore(index=i, score=probability(request, _logprobs(output)))
                for i, output in enumerate(outputs)
            ],
            usage=_usage(outputs),
        )
        return json_response(to_json(response), headers=load_report(raw, ctx.metrics))

    return router


def prompts_of(
    request: GenerativeScoringRequest, tokenizer: Callable[[], Tokenizer]
) -> list[list[int]]:
    """Token ids of the query with each item after it, or before it; texts need a tokenizer."""

    def ids(text: str | list[int], special: bool) -> list[int]:
        return text if isinstance(text, list) else tokenizer().encode(text, special)

    query = ids(request.query, request.add_special_tokens)
    items = [ids(item, False) for item in request.items]
    return [item + query if request.item_first else query + item for item in items]


def probability(request: GenerativeScoringRequest, found: Mapping[int, Logprob]) -> float:
    """Of the first label: among the labels, or in the whole vocabulary."""
    first = found[request.label_token_ids[0]].logprob
    if not request.apply_softmax:
        return math.exp(first)
    values = [found[token].logprob for token in dict.fromkeys(request.label_token_ids)]
    top = max(values)
    return math.exp(first - top) / sum(math.exp(value - top) for value in values)


async def _outputs(
    ctx: Context, request: GenerativeScoringRequest, prompts: Sequence[list[int]], id: str
) -> list[RequestOutput]:
    """One token after each prompt, with the log probabilities of the labels."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprob_token_ids=list(dict.fromkeys(request.label_token_ids)),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

    async def start(i: int, prompt: list[int]) -> OutputStream:
        ctx.admit()
        engine_prompt: dict[str, Any] = {"prompt_token_ids": prompt}
        if request.cache_salt is not None:
            engine_prompt["cache_salt"] = request.cache_salt
        return ctx.engine.generate(
            cast(TokensPrompt, engine_prompt),
            params,
            f"{id}-{i}",
            priority=request.priority,
            adapter=ctx.adapter(request.model),
        )

    return await collect(await start_all(start(i, p) for i, p in enumerate(prompts)))


def _logprobs(output: RequestOutput) -> Mapping[int, Logprob]:
    steps = output.outputs[0].logprobs
    assert steps, "the request asks for the labels' log probabilities"
    return cast(Mapping[int, Logprob], steps[0])


def _usage(outputs: Sequence[RequestOutput]) -> Usage:
    prompt = sum(len(output.prompt_token_ids or ()) for output in outputs)
    generated = sum(len(output.outputs[0].token_ids) for output in outputs)
    return Usage(prompt, prompt + generated, generated)
