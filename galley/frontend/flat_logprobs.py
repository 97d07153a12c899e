"""Logprobs of many positions in a few long lists: `SamplingParams.flat_logprobs`.

Python's garbage collector visits every dict of a list of dicts, but each of these lists only once.
They read like the list of dicts that they represent.

    position        0          1     2
    start, end      0,3        3,5   5,5      no candidates: a prompt's first position
    token_ids     [ a  b  c  | d  e ]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

from galley.outputs import Logprob


class FlatLogprobs(Sequence[dict[int, Logprob]]):
    """Candidates by position (vLLM's names).

    Attributes:
        start_indices, end_indices: of each position's candidates in the other lists.
        token_ids, logprobs, ranks, decoded_tokens: one entry a candidate.
    """

    def __init__(self, positions: Iterable[dict[int, Logprob] | None] = ()) -> None:
        self.start_indices: list[int] = []
        self.end_indices: list[int] = []
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.ranks: list[int | None] = []
        self.decoded_tokens: list[str | None] = []
        for candidates in positions:
            self.start_indices.append(len(self.token_ids))
            for token_id, entry in (candidates or {}).items():
                self.token_ids.append(token_id)
                self.logprobs.append(entry.logprob)
                self.ranks.append(entry.rank)
                self.decoded_tokens.append(entry.decoded_token)
            self.end_indices.append(len(self.token_ids))

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob]: ...

    @overload
    def __getitem__(self, index: slice) -> FlatLogprobs: ...

    def __getitem__(self, index: int | slice) -> dict[int, Logprob] | FlatLogprobs:
        if isinstance(index, slice):
            return FlatLogprobs(self[i] for i in range(*index.indices(len(self))))
        span = slice(self.start_indices[index], self.end_indices[index])
        columns = (self.logprobs[span], self.ranks[span], self.decoded_tokens[span])
        entries = (Logprob(*values) for values in zip(*columns, strict=True))
        return dict(zip(self.token_ids[span], entries, strict=True))


def sample_logprobs(
    positions: list[dict[int, Logprob]] | None, flat: bool
) -> Sequence[dict[int, Logprob]] | None:
    """Logprobs of generated tokens, flat if requested."""
    return FlatLogprobs(positions) if flat and positions is not None else positions


def prompt_logprobs(
    positions: list[dict[int, Logprob] | None] | None, flat: bool
) -> Sequence[dict[int, Logprob] | None] | None:
    """Logprobs of a prompt, flat if requested: its first position is then empty, not None."""
    return FlatLogprobs(positions) if flat and positions is not None else positions
