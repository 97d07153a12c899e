"""Answers from token ids: what an engine has generated elsewhere, as outputs that the builders of
answers take.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from galley.errors import InvalidRequest, Unsupported
from galley.outputs import CompletionOutput, Logprob, RequestOutput
from galley.request import SamplingParams
from galley.server.context import Context
from galley.server.protocol.chat import ChatLogprobs, TokenLogprob
from galley.server.protocol.scale_out import GenerateChoice, GenerateResponse

_PLACEHOLDER = re.compile(r"token_id:(\d{1,10})")


def check_response(ctx: Context, response: GenerateResponse) -> None:
    """Raise InvalidRequest for tokens that are no answer of this model."""
    limits, field = ctx.engine.limits, "generate_response"
    if response.output_mode != "tokens":
        raise Unsupported('only responses of `output_mode` "tokens" have no text.', field=field)
    if not 1 <= len(response.choices) <= ctx.caps.n:
        raise InvalidRequest(
            f"{field}: choices must be 1 to {ctx.caps.n}, got {len(response.choices)}.", field=field
        )
    sequences = {
        "token_ids": max(len(choice.token_ids or ()) for choice in response.choices),
        "prompt_logprobs": len(response.prompt_logprobs or ()),
    }
    for name, length in sequences.items():
        if length > limits.max_model_len:
            raise InvalidRequest(
                f"{field}: {name} has {length} entries; the model's maximum context length is "
                f"{limits.max_model_len} tokens.",
                field=field,
            )
    for choice in response.choices:
        if not choice.token_ids:
            raise InvalidRequest(f"{field}: token_ids must not be empty.", field=field)
        check_ids(ctx, choice.token_ids, field)


def check_ids(ctx: Context, token_ids: Sequence[int], field: str) -> None:
    """Raise InvalidRequest for a token id that the model has not."""
    size, worst = ctx.engine.limits.vocab_size, max(token_ids, default=0)
    if worst >= size:
        raise InvalidRequest(
            f"{field}: token id {worst} is out of vocabulary (size {size}).", field=field
        )


def output_of(
    ctx: Context,
    response: GenerateResponse,
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
) -> RequestOutput:
    """The output as the engine's client would have made it.

    Args:
        params: of the request; how its tokens become text.
        prompt_token_ids: the prompt or the end of it: the text continues theirs.
    """
    return RequestOutput(
        request_id=response.request_id or "",
        prompt=None,
        prompt_token_ids=list(prompt_token_ids),
        prompt_logprobs=None,
        outputs=[_choice(ctx, choice, params, prompt_token_ids) for choice in response.choices],
        finished=True,
    )


def outputs_of_parts(
    ctx: Context,
    earlier: Sequence[Sequence[int]],
    choice: GenerateChoice,
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
) -> list[RequestOutput]:
    """The output of each part of a stream, of which `choice` is the last."""
    stream = ctx.require_tokenizer().stream(prompt_token_ids, params)

    def output(text: str, part: GenerateChoice) -> RequestOutput:
        logprobs = None if part.logprobs is None else _positions(ctx, part.logprobs)
        one = CompletionOutput(
            index=0,
            text=text,
            token_ids=part.token_ids or [],
            logprobs=logprobs,
            finish_reason=part.finish_reason,
            stop_reason=part.stop_reason,
        )
        return RequestOutput(
            request_id="",
            prompt=None,
            prompt_token_ids=list(prompt_token_ids),
            prompt_logprobs=None,
            outputs=[one],
            finished=False,
        )

    outputs = []
    for ids in earlier:
        text = "".join(map(stream.push, ids))
        outputs.append(output(text, GenerateChoice(index=0, token_ids=list(ids))))
    last = choice.token_ids or []
    text = "".join(map(stream.push, last[:-1] if _ends_hidden(ctx, choice, params) else last))
    if choice.finish_reason is not None:
        text += stream.finish()
    return [*outputs, output(text, choice)]


def _choice(
    ctx: Context, choice: GenerateChoice, params: SamplingParams, prompt_token_ids: Sequence[int]
) -> CompletionOutput:
    token_ids = choice.token_ids or []
    stream = ctx.require_tokenizer().stream(prompt_token_ids, params)
    shown = token_ids[:-1] if _ends_hidden(ctx, choice, params) else token_ids
    text = "".join(stream.push(token_id) for token_id in shown) + stream.finish()
    return CompletionOutput(
        index=choice.index,
        text=text,
        token_ids=token_ids,
        logprobs=None if choice.logprobs is None else _positions(ctx, choice.logprobs),
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
    )


def _ends_hidden(ctx: Context, choice: GenerateChoice, params: SamplingParams) -> bool:
    """Whether the last token has ended the answer and is no part of its text."""
    if choice.finish_reason != "stop" or params.include_stop_str_in_output:
        return False
    ends = {*ctx.engine.limits.eos_token_ids, *(params.stop_token_ids or ())}
    return bool(choice.token_ids) and (choice.token_ids or [0])[-1] in ends


def _positions(ctx: Context, logprobs: ChatLogprobs) -> list[dict[int, Logprob]]:
    """Candidates by token id, the token itself first; their order gives the ranks."""
    tokenizer = ctx.require_tokenizer()

    def id_of(entry: TokenLogprob) -> int:
        named = _PLACEHOLDER.fullmatch(entry.token)
        found = int(named[1]) if named else tokenizer.token_to_id(entry.token)
        if found is None or found >= ctx.engine.limits.vocab_size:
            raise InvalidRequest(
                f"logprobs: {entry.token[:100]!r} is not `token_id:N` with a token of the model.",
                field="generate_response",
            )
        return found

    positions = []
    for entry in logprobs.content:
        own = id_of(entry)
        ranked = {id_of(each): each.logprob for each in entry.top_logprobs}
        ranks = {token_id: rank for rank, token_id in enumerate(ranked, 1)}
        candidates = {own: entry.logprob, **ranked}
        positions.append(
            {
                token_id: Logprob(
                    logprob,
                    ranks.get(token_id, len(ranks) + 1),
                    tokenizer.decode_token(token_id),
                )
                for token_id, logprob in candidates.items()
            }
        )
    return positions
