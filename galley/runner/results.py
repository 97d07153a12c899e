"""From a step's samples to its `StepResult`: tokens, errors, logprobs as columns.

logit rows of a step, rows r of the plan with num_logits[r] = 1, 3, 0, 1:

    | r0 | r1 r1 r1 | r3 |      a row's last one is at cumsum(num_logits)[r] - 1; only there
                                may a token be sampled, the others are for prompt logprobs
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, LogprobColumns, RequestTable, StepPlan, StepResult
from galley.kernels.sampling import Samples
from galley.runner.sampler import NO_LOGPROBS, SamplingTable
from galley.runner.scores import Scores, highest, rank_of

NOTHING_TO_SAMPLE = "no token can be sampled: the logits are not finite, or every token is masked"


@dataclass(frozen=True, eq=False)
class SampledStep:
    """A step that has been run and sampled.

    Attributes:
        samples, logits: of its executable; logits [L, V].
        failed: row of the plan → message, for rows that failed before the sampling.
        scores: what is told in place of raw logprobs; None = those.
    """

    plan: StepPlan
    samples: Samples
    logits: NDArray[np.float32]
    failed: dict[int, str]
    scores: Scores | None = None


def step_result(step: SampledStep, table: RequestTable, sampling: SamplingTable) -> StepResult:
    """The step's result; `table` is as it was before the step."""
    plan = step.plan
    rows = np.flatnonzero(plan.num_sampled)
    at = np.cumsum(plan.num_logits, dtype=np.intp)[rows] - 1
    tokens = step.samples.token_ids[at]
    good = tokens >= 0
    errors: dict[int, str] = {}
    if step.failed or not good.all():
        good &= ~np.isin(rows, list(step.failed))
        errors = {
            int(plan.slots[row]): step.failed.get(int(row), NOTHING_TO_SAMPLE)
            for row in rows[~good]
        }
        rows, at, tokens = rows[good], at[good], tokens[good]
    num_sampled = np.zeros(len(plan.slots), np.int32)
    num_sampled[rows] = 1
    return StepResult(
        step=plan.step,
        num_sampled=num_sampled,
        token_ids=tokens,
        logprobs=_sampled_logprobs(step, rows, at, table, sampling),
        prompt_logprobs=_prompt_logprobs(step, table, sampling),
        errors=errors,
    )


def _sampled_logprobs(
    step: SampledStep,
    rows: NDArray[np.intp],
    at: NDArray[np.intp],
    table: RequestTable,
    sampling: SamplingTable,
) -> LogprobColumns | None:
    """Of the sampled tokens, for rows that asked; `at` is each row's logit row."""
    slots = step.plan.slots[rows]
    top = sampling.num_logprobs[slots]
    wanted = top > NO_LOGPROBS
    found = None
    if wanted.any():
        positions = table.num_tokens[slots[wanted]]
        found = _columns(step, rows[wanted], at[wanted], positions, top[wanted], True)
    if not sampling.scored:
        return found
    for i, slot in enumerate(slots.tolist()):
        ids = sampling.scored.get(slot)
        if ids is not None:
            one = _scored(step, int(rows[i]), int(at[i]), int(table.num_tokens[slot]), ids)
            found = one if found is None else found.joined(one)
    return found


def _scored(step: SampledStep, row: int, at: int, position: int, ids: I32) -> LogprobColumns:
    """One entry: the token of logit row `at`, then the tokens `ids`."""
    samples = step.samples
    if step.scores is not None:
        scores = step.scores.row(at, int(step.plan.slots[row]), sampled=True)
        return _entry(row, position, int(samples.token_ids[at]), scores, ids)
    logits = step.logits[at].astype(np.float64)
    peak = logits.max()
    total = peak + np.log(np.exp(logits - peak).sum())
    logprobs = (logits[ids] - total).astype(np.float32)
    return LogprobColumns(
        rows=np.array([row], np.int32),
        positions=np.array([position], np.int32),
        ranks=samples.ranks[at : at + 1],
        indptr=np.array([0, len(ids) + 1], np.int32),
        token_ids=np.concatenate((samples.token_ids[at : at + 1], ids)),
        logprobs=np.concatenate((samples.logprobs[at : at + 1], logprobs)),
    )


def _entry(
    row: int, position: int, token: int, scores: NDArray[np.float32], others: I32
) -> LogprobColumns:
    """One entry: a token, then `others`."""
    ids = np.concatenate((np.array([token], np.int32), others))
    return LogprobColumns(
        rows=np.array([row], np.int32),
        positions=np.array([position], np.int32),
        ranks=np.array([rank_of(scores, token)], np.int32),
        indptr=np.array([0, len(ids)], np.int32),
        token_ids=ids,
        logprobs=scores[ids],
    )


def _prompt_logprobs(
    step: SampledStep, table: RequestTable, sampling: SamplingTable
) -> LogprobColumns | None:
    """Of the prompt tokens that this step's logits predict, for rows that asked.

    The logits at position p say what token p + 1 would be: the first prompt token has none, and
    the last prompt position's belong to the first output token.
    """
    plan = step.plan
    top = sampling.num_prompt_logprobs[plan.slots]
    if not ((top > NO_LOGPROBS) & (plan.num_logits > 0)).any():
        return None
    rows = np.repeat(np.arange(len(plan.slots)), plan.num_logits)
    ends = np.cumsum(plan.num_logits)[rows]
    back = ends - np.arange(len(rows))  # 1 for a row's last logit row
    slots = plan.slots[rows]
    positions = (table.num_computed[slots] + plan.num_new[rows] - back + 1).astype(np.int32)
    at = np.flatnonzero((top[rows] > NO_LOGPROBS) & (positions < table.num_prompt[slots]))
    if not len(at):
        return None
    return _columns(step, rows[at], at, positions[at], top[rows[at]], False)


def _columns(
    step: SampledStep,
    rows: NDArray[np.intp],
    at: NDArray[np.intp],
    positions: I32,
    top: I32,
    sampled: bool,
) -> LogprobColumns:
    """Entry i: the token of logit row at[i], then its top[i] most likely ones."""
    samples = step.samples
    if step.scores is not None:
        entries = []
        for row, logit_row, position, count in zip(rows, at, positions, top, strict=True):
            scores = step.scores.row(int(logit_row), int(step.plan.slots[row]), sampled)
            token = int(samples.token_ids[logit_row])
            entries.append(
                _entry(int(row), int(position), token, scores, highest(scores, int(count)))
            )
        return functools.reduce(LogprobColumns.joined, entries)
    listed = samples.top_ids.shape[1]
    most = int(np.max(top))
    if most <= listed:
        ids, logprobs = samples.top_ids[at, :most], samples.top_logprobs[at, :most]
    else:
        ids, logprobs = _ranked(step.logits[at], most)
    ids = np.concatenate([samples.token_ids[at, None], ids], axis=1)
    logprobs = np.concatenate([samples.logprobs[at, None], logprobs], axis=1)
    kept = np.arange(most + 1) <= top[:, None]
    indptr = np.zeros(len(at) + 1, np.int32)
    np.cumsum(top + 1, out=indptr[1:])
    return LogprobColumns(
        rows=rows.astype(np.int32),
        positions=positions,
        ranks=samples.ranks[at],
        indptr=indptr,
        token_ids=ids[kept],
        logprobs=logprobs[kept],
    )


def _ranked(logits: NDArray[np.float32], top: int) -> tuple[I32, NDArray[np.float32]]:
    """The `top` most likely tokens of each row [e, top] and their logprobs; ties by smaller id.

    For requests that want more than the sampling kernel lists: the whole vocabulary, say.
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    ids = np.argsort(-wide, axis=1, kind="stable")[:, :top].astype(np.int32)
    return ids, np.take_along_axis(wide, ids, axis=1).astype(np.float32)
