"""Suffix decoding: the most frequent continuation of the last tokens, in the sequence itself and in
recent outputs of the server. Good for traffic that repeats itself, such as an agent's.

Source: Oliaro et al., SuffixDecoding (arXiv 2411.04975). The texts are found by hash chains instead
of a suffix tree: memory is bounded by construction, and the oldest texts make room for new ones.

A sequence sees outputs of its own scope alone: of requests with the same cache salt and adapter.
Drafts change how fast an answer comes, so without this a user could find out by timing what others
have been answered.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from galley.batch import NewRow, RequestTable
from galley.config.speculative import SpeculativeSettings
from galley.kernels import _native
from galley.spec.lookup import Lookup
from galley.spec.proposer import Target

#: Occurrences that are compared, and that vote.
_CANDIDATES = 32
#: Tokens of recent outputs: 24 bytes each.
CORPUS_TOKENS = 1 << 20


class SuffixProposer(Lookup):
    """See the module."""

    def __init__(self, settings: SpeculativeSettings, num_slots: int) -> None:
        texts = settings.suffix_decoding_max_cached_requests
        low, high = settings.lookup_range
        index = _native.DraftIndex(
            num_slots,
            low,
            high,
            _CANDIDATES,
            votes=True,
            spec_factor=settings.suffix_decoding_max_spec_factor,
            min_probability=settings.suffix_decoding_min_token_prob,
            corpus_tokens=CORPUS_TOKENS if texts else 0,
            max_texts=texts,
        )
        super().__init__(num_slots, settings.most_drafts, index)

    def enter(self, row: NewRow) -> None:
        self.scopes[row.slot] = scope_of(row.cache_salt, row.adapter)

    def leave(self, table: RequestTable, slots: NDArray[np.intp]) -> None:
        for slot in slots.tolist():
            start, end = int(table.num_prompt[slot]), int(table.num_tokens[slot])
            text = table.token_ids[slot, start:end]
            self.index.add(text.ctypes.data, len(text), int(self.scopes[slot]))
        super().leave(table, slots)


def scope_of(cache_salt: str | None, adapter: int) -> int:
    """A number for requests that may see each other's outputs."""
    name = f"{adapter} {cache_salt}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def make(settings: SpeculativeSettings, target: Target) -> SuffixProposer:
    return SuffixProposer(settings, target.num_slots)
