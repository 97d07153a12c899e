"""The mask rule interface, and token sets as bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32

#: uint64 [ceil(V / 64)], bit i of word w = token 64 w + i.
Words = NDArray[np.uint64]


class TokenSets:
    """Makes sets of a vocabulary's tokens."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.num_words = -(-vocab_size // 64)
        self._every = self.only(range(vocab_size))

    def only(self, token_ids: Iterable[int]) -> Words:
        """These tokens."""
        members = np.zeros(self.num_words * 64, np.bool_)
        members[np.fromiter(token_ids, np.int64)] = True
        return np.packbits(members, bitorder="little").view(np.uint64)

    def all_but(self, token_ids: Iterable[int]) -> Words:
        """All tokens but these."""
        return self._every & ~self.only(token_ids)


class MaskRule(Protocol):
    """A restriction of one sequence's next token.

    Attributes:
        yields: it does not count where it would leave none of the tokens that a constraint allows.
    """

    yields: bool

    def allowed(self, token_ids: I32, num_prompt: int) -> Words | None:
        """The tokens that may follow `token_ids` (prompt and output so far); None = every token."""
