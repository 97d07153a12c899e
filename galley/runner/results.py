"""Makes a `StepResult` of a step's samples: accepted tokens, errors, logprobs as columns."""

from __future__ import annotations

import functools

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, LogprobColumns, RequestTable, StepPlan, StepResult
from galley.kernels.sampling import LogitMasks, Samples
from galley.request import Failure, FailureKind
from galley.runner.drafts import verify
from galley.runner.sampled_rows import SampledRows
from galley.runner.sampler import NO_LOGPROBS, SamplingTable
from galley.runner.scores import Scores, highest, log_softmax, rank_of

NOTHING_TO_SAMPLE = "no token can be sampled: the logits are not finite, or every token is masked"
NOTHING_ALLOWED = (
    "no token can be sampled: none of the tokens that structured_outputs allows here is left by "
    "allowed_token_ids and bad_words"
)


class SampledStep(msgspec.Struct, frozen=True, eq=False):
    """A step that has been run and sampled.

    Attributes:
        sampled: the plan's sampled logit rows.
        samples, logits: of its executable; logits [L, V].
        failed: row of the plan → message, for rows that failed before sampling.
        scores: returned instead of raw logprobs; None = raw logprobs.
        masks: that it was sampled with.
    """

    plan: StepPlan
    sampled: SampledRows
    samples: Samples
    logits: NDArray[np.float32]
    failed: dict[int, str]
    scores: Scores | None = None
    masks: LogitMasks | None = None

    def fault(self, row: int) -> Failure:
        """Why a row of the plan has no token."""
        if row in self.failed:
            return Failure(self.failed[row])
        first = int(self.sampled.logit_rows[np.searchsorted(self.sampled.rows, row)])
        constrained = first in self.plan.masked_logits
        words = self.masks.of_row(first) if constrained and self.masks is not None else None
        if words is None or words.any():
            return Failure(NOTHING_TO_SAMPLE)
        return Failure(NOTHING_ALLOWED, FailureKind.REQUEST)


class _Entries(msgspec.Struct, frozen=True, eq=False):
    """Logit rows whose logprobs are wanted, [e] each.

    Attributes:
        rows: index into the plan's rows.
        logit_rows: index into the step's logit rows.
        positions: position of the token that the logprobs are of.
        num_top: how many of the most likely tokens.
    """

    rows: NDArray[np.intp]
    logit_rows: NDArray[np.intp]
    positions: I32
    num_top: I32


def step_result(step: SampledStep, table: RequestTable, sampling: SamplingTable) -> StepResult:
    """The step's result; `table` is as it was before the step."""
    plan, sampled = step.plan, step.sampled
    token_ids = step.samples.token_ids[sampled.logit_rows]
    num_sampled, accepted = plan.num_sampled, token_ids >= 0
    errors: dict[int, Failure] = {}
    if len(plan.draft_ids):
        num_sampled, accepted = verify(plan, token_ids)
    if step.failed or not accepted.all():
        if step.failed:
            accepted &= ~np.isin(sampled.rows, list(step.failed))
        accepted_rows = np.bincount(sampled.rows[accepted], minlength=len(plan.slots))
        num_sampled = accepted_rows.astype(np.int32)
        errors = {
            int(plan.slots[row]): step.fault(row)
            for row in np.flatnonzero((num_sampled == 0) & (plan.num_sampled > 0)).tolist()
        }
        sampled, token_ids = sampled.select(accepted), token_ids[accepted]
    return StepResult(
        step=plan.step,
        num_sampled=num_sampled,
        token_ids=token_ids,
        logprobs=_sampled_logprobs(step, sampled, sampling),
        prompt_logprobs=_prompt_logprobs(step, table, sampling),
        errors=errors,
    )


def _sampled_logprobs(
    step: SampledStep, sampled: SampledRows, sampling: SamplingTable
) -> LogprobColumns | None:
    """Logprobs of the sampled tokens, for rows that asked."""
    num_top = sampling.num_logprobs[sampled.slots]
    rows = np.flatnonzero(num_top > NO_LOGPROBS)
    columns = None
    if len(rows):
        chosen = sampled.select(rows)
        entries = _Entries(chosen.rows, chosen.logit_rows, chosen.positions, num_top[rows])
        columns = _columns(step, entries, sampled=True)
    if not (sampling.logprob_ids or sampling.allowed_logprobs):
        return columns
    for i, slot in enumerate(sampled.slots.tolist()):
        ids, count = sampling.logprob_ids.get(slot), sampling.allowed_logprobs.get(slot)
        if ids is not None:
            entry = _entry_of_ids(step, sampled, i, ids)
        elif count is not None:
            entry = _entry_of_allowed(step, sampled, i, count)
        else:
            continue
        columns = entry if columns is None else columns.joined(entry)
    return columns


def _entry_of_allowed(
    step: SampledStep, sampled: SampledRows, i: int, count: int
) -> LogprobColumns:
    """One entry: the token of sampled row i, then the most likely of those that its mask allows."""
    row, logit_row = int(sampled.rows[i]), int(sampled.logit_rows[i])
    logits = step.logits[logit_row]
    words = None if step.masks is None else step.masks.of_row(logit_row)
    if words is not None:
        allowed = np.unpackbits(words.view(np.uint8), bitorder="little", count=len(logits))
        logits = np.where(allowed, logits, np.float32(-np.inf))
    scores = log_softmax(logits)
    ids = highest(scores, count)
    token = int(step.samples.token_ids[logit_row])
    return _entry(row, int(sampled.positions[i]), token, scores, ids[np.isfinite(scores[ids])])


def _entry_of_ids(step: SampledStep, sampled: SampledRows, i: int, ids: I32) -> LogprobColumns:
    """One entry: the token of sampled row i, then the tokens `ids`."""
    row, logit_row = int(sampled.rows[i]), int(sampled.logit_rows[i])
    position, samples = int(sampled.positions[i]), step.samples
    if step.scores is not None:
        scores = step.scores.row(logit_row, int(sampled.slots[i]), position)
        return _entry(row, position, int(samples.token_ids[logit_row]), scores, ids)
    logits = step.logits[logit_row].astype(np.float64)
    peak = logits.max()
    total = peak + np.log(np.exp(logits - peak).sum())
    logprobs = (logits[ids] - total).astype(np.float32)
    own = slice(logit_row, logit_row + 1)
    return LogprobColumns(
        rows=np.array([row], np.int32),
        positions=np.array([position], np.int32),
        ranks=samples.ranks[own],
        indptr=np.array([0, len(ids) + 1], np.int32),
        token_ids=np.concatenate((samples.token_ids[own], ids)),
        logprobs=np.concatenate((samples.logprobs[own], logprobs)),
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
    """Logprobs of the prompt tokens that this step's logits predict, for rows that asked.

    The logits at position p predict token p + 1: the first prompt token has none, and the last
    prompt position's belong to the first output token.
    """
    plan = step.plan
    num_top = sampling.num_prompt_logprobs[plan.slots]
    if not ((num_top > NO_LOGPROBS) & (plan.num_logits > 0)).any():
        return None
    rows = np.repeat(np.arange(len(plan.slots)), plan.num_logits)
    ends = np.cumsum(plan.num_logits)[rows]
    back = ends - np.arange(len(rows))  # 1 for a row's last logit row
    slots = plan.slots[rows]
    positions = (table.num_computed[slots] + plan.num_new[rows] - back + 1).astype(np.int32)
    logit_rows = np.flatnonzero(
        (num_top[rows] > NO_LOGPROBS) & (positions < table.num_prompt[slots])
    )
    if not len(logit_rows):
        return None
    rows = rows[logit_rows]
    entries = _Entries(rows, logit_rows, positions[logit_rows], num_top[rows])
    return _columns(step, entries, sampled=False)


def _columns(step: SampledStep, entries: _Entries, sampled: bool) -> LogprobColumns:
    """Entry i: the token of logit row i, then its most likely ones."""
    if step.scores is not None:
        return _scored_columns(step, step.scores, entries, sampled)
    return _kernel_columns(step, entries)


def _scored_columns(
    step: SampledStep, scores: Scores, entries: _Entries, sampled: bool
) -> LogprobColumns:
    """Entries of `scores`, one row at a time."""
    columns = []
    for row, logit_row, position, count in zip(
        entries.rows.tolist(),
        entries.logit_rows.tolist(),
        entries.positions.tolist(),
        entries.num_top.tolist(),
        strict=True,
    ):
        of_row = scores.row(logit_row, int(step.plan.slots[row]), position if sampled else None)
        token = int(step.samples.token_ids[logit_row])
        columns.append(_entry(row, position, token, of_row, highest(of_row, count)))
    return functools.reduce(LogprobColumns.joined, columns)


def _kernel_columns(step: SampledStep, entries: _Entries) -> LogprobColumns:
    """Entries of what the sampling kernel lists, or of the logits where more is wanted."""
    samples, logit_rows, num_top = step.samples, entries.logit_rows, entries.num_top
    most = int(np.max(num_top))
    if most <= samples.top_ids.shape[1]:
        ids, logprobs = samples.top_ids[logit_rows, :most], samples.top_logprobs[logit_rows, :most]
    else:
        ids, logprobs = _ranked(step.logits[logit_rows], most)
    ids = np.concatenate([samples.token_ids[logit_rows, None], ids], axis=1)
    logprobs = np.concatenate([samples.logprobs[logit_rows, None], logprobs], axis=1)
    kept = np.arange(most + 1) <= num_top[:, None]
    indptr = np.zeros(len(logit_rows) + 1, np.int32)
    np.cumsum(num_top + 1, out=indptr[1:])
    return LogprobColumns(
        rows=entries.rows.astype(np.int32),
        positions=entries.positions,
        ranks=samples.ranks[logit_rows],
        indptr=indptr,
        token_ids=ids[kept],
        logprobs=logprobs[kept],
    )


def _ranked(logits: NDArray[np.float32], top: int) -> tuple[I32, NDArray[np.float32]]:
    """The `top` most likely tokens of each row [e, top] and their logprobs; ties by smaller id.

    For requests that want more than the sampling kernel lists, such as the whole vocabulary.
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    ids = np.argsort(-wide, axis=1, kind="stable")[:, :top].astype(np.int32)
    return ids, np.take_along_axis(wide, ids, axis=1).astype(np.float32)
