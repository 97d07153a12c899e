"""Log-probabilities in the shapes of the two generation endpoints.

A position's candidates come as a dict: the token itself first, then the most likely ones in
order. `None` stands for a position without any, which is a prompt's first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from galley.outputs import Logprob
from galley.server.protocol.base import PromptLogprob
from galley.server.protocol.chat import ChatLogprobs, ContentLogprob, TokenLogprob
from galley.server.protocol.completions import CompletionLogprobs

Candidates = dict[int, Logprob]
#: Stands for -inf, which JSON lacks (a masked token, with --logprobs-mode processed_…); as in vLLM.
MIN_LOGPROB = -9999.0
#: Text of a token id, where no candidate carries it.
TokenText = Callable[[int], str]
#: The bytes that a token adds to a text: exact, where its text has "�" for half a character.
TokenBytes = Callable[[int], bytes]


def finite(logprob: float) -> float:
    """A logprob as JSON can hold it."""
    return max(logprob, MIN_LOGPROB)


def token_text(token_id: int, entry: Logprob, as_ids: bool) -> str:
    if as_ids:
        return f"token_id:{token_id}"
    return entry.decoded_token or ""


def by_rank(candidates: Candidates, top: int | None) -> list[tuple[int, Logprob]]:
    """The `top` most likely candidates (-1 = all), most likely first, and the token itself;
    None: those requested by id, in their order.
    """
    items = list(candidates.items())
    if top is None:
        return items
    ranked = sorted(items, key=lambda item: item[1].rank or 0)
    if top == -1 or top >= len(ranked):
        return ranked
    kept = ranked[:top]
    return kept if items[0] in kept else [*kept, items[0]]


def chat_logprobs(
    token_ids: Sequence[int],
    positions: Sequence[Candidates],
    top: int | None,
    as_ids: bool,
    bytes_of: TokenBytes | None,
) -> ChatLogprobs:
    """`choices[].logprobs` of a chat answer.

    Args:
        top: 0 gives empty candidate lists, None all candidates in their order.
        bytes_of: None: `bytes` are null, as the tokens are named by id alone.
    """

    def entry(token_id: int, candidate: Logprob) -> TokenLogprob:
        text = token_text(token_id, candidate, as_ids)
        spelt = None if bytes_of is None else list(bytes_of(token_id))
        return TokenLogprob(text, finite(candidate.logprob), spelt)

    content = []
    for token_id, candidates in zip(token_ids, positions, strict=True):
        own = entry(token_id, candidates[token_id])
        ranked = () if top == 0 else by_rank(candidates, top)
        others = [entry(i, candidate) for i, candidate in ranked]
        content.append(ContentLogprob(own.token, own.logprob, own.bytes, others))
    return ChatLogprobs(content)


def completion_logprobs(
    token_ids: Iterable[int],
    positions: Iterable[Candidates | None],
    top: int | None,
    as_ids: bool,
    text_of: TokenText,
    offset: int = 0,
) -> CompletionLogprobs:
    """`choices[].logprobs` of a completion.

    Args:
        top: candidates a position; 0 = the token alone, None = all in their order.
        offset: characters of the answer before the first of these tokens.
    """
    out = CompletionLogprobs([], [], [], [])
    for token_id, candidates in zip(token_ids, positions, strict=True):
        if candidates is None:
            text = f"token_id:{token_id}" if as_ids else text_of(token_id)
            out.token_logprobs.append(None)
            out.top_logprobs.append(None)
        else:
            own = candidates[token_id]
            text = token_text(token_id, own, as_ids)
            out.token_logprobs.append(finite(own.logprob))
            ranked = by_rank(candidates, top)
            out.top_logprobs.append(
                {token_text(i, e, as_ids): finite(e.logprob) for i, e in ranked}
            )
        out.tokens.append(text)
        out.text_offset.append(offset)
        offset += len(text)
    return out


def prompt_logprobs(
    positions: Sequence[Candidates | None] | None,
) -> list[dict[int, PromptLogprob] | None] | None:
    """`prompt_logprobs` of either endpoint."""
    if positions is None:
        return None
    return [
        None
        if candidates is None
        else {
            i: PromptLogprob(finite(e.logprob), e.rank, e.decoded_token)
            for i, e in candidates.items()
        }
        for candidates in positions
    ]
