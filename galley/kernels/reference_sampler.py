"""Samples a step row by row, by the sampler's definition (`sampling_reference`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.batch import RequestTable
from galley.kernels.backend import StepInputs, StepLimits
from galley.kernels.sampling import LogitMasks, Samples
from galley.kernels.sampling_reference import SampleParams, logprobs_row, sample_row


class ReferenceSampler:
    """Gives the results of the native op `sample`.

    Args:
        table: where a row's history is.
        columns: parameters by slot, named as `runner.SamplingTable.columns`; a column that is not
            there is off.
    """

    def __init__(
        self, table: RequestTable, columns: Mapping[str, NDArray[Any]], limits: StepLimits
    ) -> None:
        self._table = table
        self._columns = dict(columns)
        self._top = limits.top_logprobs
        self.masks: LogitMasks | None = None

    def sample(self, step: StepInputs, logits: NDArray[np.float32]) -> Samples:
        """One entry per logit row [L, V] of the step."""
        rows, top = len(logits), self._top
        samples = Samples(
            np.full(rows, -1, np.int32),
            np.zeros(rows, np.float32),
            np.zeros(rows, np.int32),
            np.zeros((rows, top), np.int32),
            np.zeros((rows, top), np.float32),
        )
        row = 0
        for slot, new, num_logits, num_sampled in zip(
            step.slots, step.num_new, step.num_logits, step.num_sampled, strict=True
        ):
            end = int(self._table.num_computed[slot] + new)
            for known in range(end - int(num_logits) + 1, end + 1):
                sampled = known > end - int(num_sampled)
                samples.token_ids[row] = self._token(int(slot), known, row, logits[row], sampled)
                self._list_logprobs(int(slot), row, logits[row], samples)
                row += 1
        return samples

    def _token(
        self, slot: int, known: int, row: int, logits: NDArray[np.float32], sampled: bool
    ) -> int:
        """The token after the first `known` ones: sampled, or the prompt's own, -1 if unknown."""
        history = self._table.token_ids[slot]
        if not sampled:
            return int(history[known]) if known < self._table.num_tokens[slot] else -1
        mask, bias = None, None
        if self.masks is not None:
            start, stop = self.masks.bias_indptr[row : row + 2]
            mask = self.masks.of_row(row)
            bias = (self.masks.bias_ids[start:stop], self.masks.bias_values[start:stop])
        prompt = min(int(self._table.num_prompt[slot]), known)
        return sample_row(logits, self._params(slot), history[:known], prompt, mask, bias)

    def _params(self, slot: int) -> SampleParams:
        names = SampleParams.__struct_fields__
        return SampleParams(
            **{name: self._columns[name][slot].item() for name in names if name in self._columns}
        )

    def _list_logprobs(
        self, slot: int, row: int, logits: NDArray[np.float32], samples: Samples
    ) -> None:
        num_logprobs = self._columns.get("num_logprobs")
        if num_logprobs is None or num_logprobs[slot] < 0:
            return
        top = min(int(num_logprobs[slot]), self._top, len(logits))
        token = int(samples.token_ids[row])
        result = logprobs_row(logits, token, top)
        samples.logprobs[row], samples.ranks[row] = (
            (result.logprob, result.rank) if token >= 0 else (-np.inf, 0)
        )
        samples.top_ids[row, :top] = result.top_ids
        samples.top_logprobs[row, :top] = result.top_logprobs
