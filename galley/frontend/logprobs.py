"""Logprob columns of a step → vLLM's list of dicts, one dict per position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from galley.messages import Logprobs
from galley.outputs import Logprob


class TokenTexts(Protocol):
    """The part of a tokenizer that is used here: the text of one token, also of a special one."""

    def decode_token(self, token_id: int) -> str: ...


def unpack_logprobs(
    columns: Logprobs, tokens: TokenTexts | None
) -> Iterator[tuple[int, int, dict[int, Logprob]]]:
    """Yield (handle, absolute position, candidates).

    The first candidate of a position is the token itself with its own rank; the rest are the top
    k in order, or the requested tokens, numbered in their order. If the token is among them it has
    one entry.

        indptr:    [0,          3,     ...]
        token_ids: [tok, a, b | tok, a ...]      a, b … have ranks 1, 2 …
    """
    handles = memoryview(columns.handles).cast("q").tolist()
    positions = memoryview(columns.positions).cast("i").tolist()
    ranks = memoryview(columns.ranks).cast("i").tolist()
    indptr = memoryview(columns.indptr).cast("i").tolist()
    ids = memoryview(columns.token_ids).cast("i").tolist()
    values = memoryview(columns.logprobs).cast("f").tolist()
    text = tokens.decode_token if tokens is not None else _no_text
    for i, handle in enumerate(handles):
        start, end = indptr[i], indptr[i + 1]
        own = ids[start]
        entry = {own: Logprob(values[start], ranks[i], text(own))}
        for rank, j in enumerate(range(start + 1, end), 1):
            if ids[j] != own:
                entry[ids[j]] = Logprob(values[j], rank, text(ids[j]))
        yield handle, positions[i], entry


def _no_text(token_id: int) -> None:
    return None
