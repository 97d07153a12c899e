"""Inputs of sampling besides the columns of `runner.SamplingTable`, and its results.

L logit rows, V vocabulary. The L rows include those that only yield prompt logprobs: no token is
sampled for them, and their `token_ids` are the prompt's own next tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray


class LogitMasks(msgspec.Struct, frozen=True, eq=False):
    """Masks and biases by logit row. The caller keeps the arrays alive.

    Attributes:
        masks: row → its allowed tokens, uint64 words, bit i of word w = token 64 w + i.
        shared_rows, shared: int32 [k] ascending, and uint64 [k, words]: further rows and their
            words. A row that is in neither may have all tokens.
        addresses: uint64 [L] addresses of a row's words, 0 = all tokens.
        bias_indptr, bias_ids, bias_values: added to the logits; row l has entries
            bias_indptr[l] .. bias_indptr[l + 1]. int32 [L + 1], int32, float32.
    """

    masks: Mapping[int, NDArray[np.uint64]]
    shared_rows: NDArray[np.int32]
    shared: NDArray[np.uint64]
    addresses: NDArray[np.uint64]
    bias_indptr: NDArray[np.int32]
    bias_ids: NDArray[np.int32]
    bias_values: NDArray[np.float32]

    def of_row(self, row: int) -> NDArray[np.uint64] | None:
        """The words of a logit row; None where it may have all tokens."""
        at = int(np.searchsorted(self.shared_rows, row))
        if at < len(self.shared_rows) and self.shared_rows[at] == row:
            words: NDArray[np.uint64] = self.shared[at]
            return words
        return self.masks.get(row)


class Samples(msgspec.Struct, frozen=True, eq=False):
    """Sampled tokens of a step, one entry per logit row.

    Attributes:
        token_ids: int32 [L]; -1 where no token can be sampled (no finite logit is allowed).
        logprobs: float32 [L] of those tokens in the raw distribution.
        ranks: int32 [L], 1 = the most likely token.
        top_ids, top_logprobs: [L, top] int32, float32, the most likely tokens in order; only
            the first `num_logprobs` (a column) of a row are set.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
