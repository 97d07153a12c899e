"""Custom logits processors: Python callables on one row's logits, between forward and sampling.

A processor is called with two or three arguments, as its signature asks (vLLM's forms):

    processor(output_token_ids, logits_row) -> logits_row
    processor(prompt_token_ids, output_token_ids, logits_row) -> logits_row

Token ids are lists of int, the row is float32 [V]; it may be changed in place, but must be
returned. Logprobs are of the row that the processors return.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.batch import RequestTable
from galley.runner.sampled_rows import SampledRows
from galley.runner.sampler import SamplingTable


def apply_processors(
    processed: SampledRows,
    table: RequestTable,
    sampling: SamplingTable,
    logits: NDArray[np.float32],
) -> dict[int, str]:
    """Rewrite the logits of these rows; row of the plan → message for those that failed.

    Rows with processors have no drafts, so each is the one sampled row of its sequence.
    """
    failed: dict[int, str] = {}
    for row, logit_row, slot, known in zip(
        processed.rows.tolist(),
        processed.logit_rows.tolist(),
        processed.slots.tolist(),
        processed.positions.tolist(),
        strict=True,
    ):
        first = int(table.num_prompt[slot])
        prompt = table.token_ids[slot, :first].tolist()
        output = table.token_ids[slot, first:known].tolist()
        target = logits[logit_row]
        try:
            for processor in sampling.rules[slot].processors:
                target[:] = _call(processor, prompt, output, target)
        except Exception as error:  # noqa: BLE001 - a user's callable fails its own request only
            failed[row] = f"a logits processor failed: {type(error).__name__}: {error}"
    return failed


def _call(
    processor: Any, prompt: list[int], output: list[int], row: NDArray[np.float32]
) -> NDArray[np.float32]:
    parameters = inspect.signature(processor).parameters
    args = (prompt, output, row) if len(parameters) == 3 else (output, row)
    returned = np.asarray(processor(*args), np.float32)
    if returned.shape != row.shape:
        raise ValueError(f"it returned shape {returned.shape} for logits of shape {row.shape}")
    return returned
