"""Requests that pool, from their inputs to their results: what all routes of this kind share."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from galley.config.pooling import PoolingSettings
from galley.errors import InvalidRequest
from galley.frontend.chunked_embedding import ChunkedTexts
from galley.frontend.pooling import PendingVector
from galley.frontend.prompts import Prompt
from galley.outputs import PoolingRequestOutput
from galley.request import PoolingParams, PoolingTask
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.errors import json_response
from galley.server.load_report import load_report
from galley.server.protocol.base import PromptTokensDetails, Usage
from galley.server.protocol.pooling import EncodingFields, InputFields, PoolingFields
from galley.server.rendering import render
from galley.server.response_builder import to_json
from galley.server.sampling import LONG_TEXT
from galley.server.stream import until_disconnect

#: Names of dtypes in requests → numpy's.
_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "fp8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


class Pooled(NamedTuple):
    """A request that has been pooled, and what each answer says of it."""

    id: str
    created: int
    model: str
    outputs: list[PoolingRequestOutput]
    usage: Usage


def settings_of(ctx: Context) -> PoolingSettings:
    """The model's pooling."""
    return ctx.pooling


async def pool(
    ctx: Context, raw: Request, request: InputFields, params: PoolingParams, prefix: str
) -> Pooled:
    """Pool a request's inputs or conversations. `prefix`: of the id that it gets.

    Raises InvalidRequest, Unsupported, EngineDead.
    """
    apply_priority_header(raw, request)
    prompts, special, field = await prompts_of(ctx, request)
    model = await ctx.model_name(request.model)
    id = request_id(raw, prefix, request.request_id, ctx.caps.request_id)
    outputs = await pooled(
        ctx, raw, request, prompts, params, id, field=field, add_special_tokens=special
    )
    usage = usage_of(outputs, ctx.server.enable_prompt_tokens_details)
    return Pooled(id, int(time.time()), model, outputs, usage)


async def respond_with_numbers(
    ctx: Context,
    raw: Request,
    request: EncodingFields,
    task: PoolingTask | None,
    prefix: str,
    answer: Callable[..., msgspec.Struct],
    entry: Callable[[int, Any], Any],
) -> Response:
    """The numbers of each input in the format that the request asks for.

    Args:
        task, prefix: of `PoolingParams`, and as for `pool`.
        answer, entry: make the answer and each of its entries.
    """
    params = PoolingParams(task=task, dimensions=request.dimensions)
    done = await pool(ctx, raw, request, params, prefix)
    if request.encoding_format in ("bytes", "bytes_only"):
        header = {"id": done.id, "created": done.created, "model": done.model}
        usage = msgspec.to_builtins(done.usage)
        return as_bytes(done.outputs, request, {**header, "usage": usage})
    numbers = (numbers_of(output.outputs.data, request) for output in done.outputs)
    return answered(ctx, raw, answer, done, [entry(i, each) for i, each in enumerate(numbers)])


def answered(
    ctx: Context,
    raw: Request,
    answer: Callable[..., msgspec.Struct],
    done: Pooled,
    data: list[Any],
) -> Response:
    """The answer with these entries."""
    made = answer(id=done.id, created=done.created, model=done.model, data=data, usage=done.usage)
    return json_response(to_json(made), headers=load_report(raw, ctx.metrics))


async def pooled(
    ctx: Context,
    raw: Request,
    request: PoolingFields,
    prompts: Sequence[str | list[int]],
    params: PoolingParams,
    id: str,
    *,
    field: str = "input",
    add_special_tokens: bool = True,
) -> list[PoolingRequestOutput]:
    """The outputs of all prompts, or none: the failure of one aborts the others, and so does a
    client that disconnects.

    Args:
        field: of the request that the prompts come from, for errors.
    """
    params = msgspec.structs.replace(
        params,
        use_activation=request.use_activation,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )
    work = _outputs(ctx, request, prompts, params, id, field, add_special_tokens)
    return await until_disconnect(raw.receive, work)


async def _outputs(
    ctx: Context,
    request: PoolingFields,
    prompts: Sequence[str | list[int]],
    params: PoolingParams,
    id: str,
    field: str,
    special: bool,
) -> list[PoolingRequestOutput]:
    whole = await _tokenized(ctx, request, prompts, special)
    chunked = ChunkedTexts.of(settings_of(ctx), ctx.engine.limits.max_model_len, whole, params)
    each = [params] * len(whole)
    if chunked is not None:
        whole, each = chunked.parts, chunked.params
    pending: list[PendingVector] = []
    try:
        for i, prompt in enumerate(whole):
            ctx.admit()
            pending.append(_start(ctx, request, prompt, each[i], f"{id}-{i}", field, special))
        outputs = [await vector.output() for vector in pending]
    finally:
        for vector in pending:
            vector.close()
    return outputs if chunked is None else chunked.joined(outputs)


async def _tokenized(
    ctx: Context, request: PoolingFields, prompts: Sequence[str | list[int]], special: bool
) -> list[str | list[int]]:
    """Token ids of texts: of many or long ones made in native threads, so that the event loop goes
    on.

    Texts that may be truncated stay texts, as the tokens that the tokenizer adds are kept.
    """
    tokenizer = ctx.tokenizer
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    chunks = settings_of(ctx).chunks
    if tokenizer is None or not texts or request.truncate_prompt_tokens is not None:
        return list(prompts)
    if not chunks and len(texts) < 2 and len(texts[0]) < LONG_TEXT:
        return list(prompts)
    if len(texts) < 8 and sum(map(len, texts)) < LONG_TEXT:
        ids = tokenizer.encode_batch(texts, special)
    else:
        ids = await asyncio.to_thread(tokenizer.encode_batch, texts, special)
    made = iter(ids)
    return [next(made) if isinstance(prompt, str) else prompt for prompt in prompts]


def _start(
    ctx: Context,
    request: PoolingFields,
    given: str | list[int],
    params: PoolingParams,
    id: str,
    field: str,
    special: bool,
) -> PendingVector:
    """Submit one prompt to the engine. Raises InvalidRequest, Unsupported, EngineDead."""
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
            add_special_tokens=special,
            truncation_side=request.truncation_side or "right",
            adapter=ctx.adapter(request.model),
        )
    except InvalidRequest as error:
        name = field if error.field == "prompt" else error.field
        raise InvalidRequest(error.message, field=name) from None


async def prompts_of(ctx: Context, request: InputFields) -> tuple[list[str | list[int]], bool, str]:
    """The prompts of a request, whether the tokenizer's own tokens are put around them, and the
    field that they come from. Raises InvalidRequest, Unsupported.
    """
    talks = request.conversations()
    if talks is None:
        before = settings_of(ctx).text_before(request.prompt_name)
        texts = [
            before + text if before and isinstance(text, str) else text
            for text in request.texts(ctx.caps)
        ]
        return texts, request.add_special_tokens is not False, "input"
    rendered: list[str | list[int]] = [
        await render(
            ctx,
            talk,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template=request.chat_template,
            chat_template_kwargs=request.chat_template_kwargs,
        )
        for talk in talks
    ]
    return rendered, bool(request.add_special_tokens), "messages"


def numbers_of(
    data: NDArray[np.float32], request: EncodingFields
) -> list[float | list[float]] | str:
    """The numbers of one output in the format that the request asks for."""
    if request.encoding_format == "float":
        return cast(list[float | list[float]], data.tolist())
    return base64.b64encode(bytes_of(data, request)).decode()


def bytes_of(data: NDArray[np.float32], request: EncodingFields) -> bytes:
    """The numbers in the dtype and byte order that the request asks for."""
    values = data.astype(_DTYPES[request.embed_dtype])
    native = "little" if sys.byteorder == "little" else "big"
    swapped = request.endianness not in ("native", native) and values.itemsize > 1
    raw = values.view(f"u{values.itemsize}")
    return (raw.byteswap() if swapped else raw).tobytes()


def as_bytes(
    outputs: Sequence[PoolingRequestOutput], request: EncodingFields, header: dict[str, Any]
) -> Response:
    """All numbers as the bytes of the body; with the format `bytes` the header `metadata` says
    where each output's are.

    Args:
        header: the other keys of `metadata`.
    """
    parts, items, start = [], [], 0
    for i, output in enumerate(outputs):
        part = bytes_of(output.outputs.data, request)
        items.append(
            {
                "index": i,
                "embed_dtype": request.embed_dtype,
                "endianness": request.endianness,
                "start": start,
                "end": start + len(part),
                "shape": list(output.outputs.data.shape),
            }
        )
        parts.append(part)
        start += len(part)
    headers = {}
    if request.encoding_format == "bytes":
        headers["metadata"] = msgspec.json.encode({**header, "data": items}).decode()
    return Response(b"".join(parts), media_type="application/octet-stream", headers=headers)


def usage_of(outputs: Sequence[PoolingRequestOutput], details: bool) -> Usage:
    """Tokens of all prompts."""
    tokens = sum(len(output.prompt_token_ids) for output in outputs)
    cached = sum(output.num_cached_tokens for output in outputs)
    return Usage(
        prompt_tokens=tokens,
        total_tokens=tokens,
        prompt_tokens_details=PromptTokensDetails(cached) if details else None,
    )
