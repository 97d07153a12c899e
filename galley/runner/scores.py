"""Per-token scores returned for --logprobs-mode.

    raw_logprobs         log-softmax of the model's logits; the sampling kernel lists them itself
    raw_logits           the model's logits
    processed_logits     what was sampled from: with mask, bias and penalties, over the temperature,
                         and -inf where min_p, top_k, top_p or the mask left a token out
    processed_logprobs   log-softmax of that

All but the first are computed here, for the rows that ask, each from its own row alone, so they do
not depend on the batch. Nothing is sampled at a prompt's positions: processed scores are raw there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.batch import EMPTY_I32, I32, RequestTable
from galley.config import LogprobsMode
from galley.kernels.sampling import LogitMasks
from galley.kernels.sampling_reference import SampleParams, adjusted, keep_mask, weights_of

F32 = NDArray[np.float32]
GREEDY = 0.0


class Scores:
    """The scores of one step's logit rows.

    Args:
        logits: [L, V] of the step.
        columns: sampling parameters by slot (`SamplingTable.columns`).
        masks: masks and biases of the step's logit rows.
    """

    def __init__(
        self,
        mode: LogprobsMode,
        logits: F32,
        table: RequestTable,
        columns: Mapping[str, NDArray[Any]],
        masks: LogitMasks | None,
    ) -> None:
        self._processed = mode.startswith("processed")
        self._normalised = mode.endswith("logprobs")
        self._logits = logits
        self._table = table
        self._columns = columns
        self._masks = masks

    def row(self, logit_row: int, slot: int, position: int | None) -> F32:
        """[V], of a logit row.

        Args:
            position: of the token sampled from it; None where the next token is the prompt's.
        """
        x = self._logits[logit_row]
        if self._processed and position is not None:
            x = self._processed_row(logit_row, slot, position)
        return log_softmax(x) if self._normalised else x

    def _processed_row(self, logit_row: int, slot: int, position: int) -> F32:
        names = SampleParams.__struct_fields__
        params = SampleParams(**{name: self._columns[name][slot].item() for name in names})
        mask = bias = None
        if self._masks is not None:
            start, stop = self._masks.bias_indptr[logit_row : logit_row + 2]
            mask = self._masks.of_row(logit_row)
            bias = (self._masks.bias_ids[start:stop], self._masks.bias_values[start:stop])
        history = self._table.token_ids[slot, :position]
        prompt = int(self._table.num_prompt[slot])
        x = adjusted(self._logits[logit_row], params, history, prompt, mask, bias)
        if params.temperature == GREEDY or not np.isfinite(np.max(x)):
            return x
        keep = keep_mask(x, weights_of(x, params), params)
        return np.where(keep, x / np.float32(params.temperature), np.float32(-np.inf))


def log_softmax(x: F32) -> F32:
    """[V]; in double precision inside."""
    wide = x.astype(np.float64)
    wide -= np.max(wide)
    wide -= np.log(np.exp(wide).sum())
    return wide.astype(np.float32)


def rank_of(scores: F32, token: int) -> int:
    """1 = the highest score; 0 for no token."""
    return 1 + int((scores > scores[token]).sum()) if token >= 0 else 0


def highest(scores: F32, count: int) -> I32:
    """The tokens with the `count` highest scores in order; of equal ones the smaller id first."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable").astype(np.int32)
    if count == 0:
        return EMPTY_I32
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > least)
    above = above[np.argsort(-scores[above], kind="stable")]
    equal = np.flatnonzero(scores == least)[: count - len(above)]
    return np.concatenate((above, equal)).astype(np.int32)
