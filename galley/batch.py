"""Shared types of scheduler and runner, as columns: request table, step plan, step result.

Imports only `errors` and `request`; no torch. The scheduler owns one `RequestTable`, each runner
another; both are kept equal by `apply_plan` and `apply_result` alone, so a worker may be another
process (`encode_plan` and `encode_result` give bytes).

A row of a step is a slot with `num_new` tokens to compute, at positions

    0 ........ num_computed ....... num_computed + num_new ..... num_tokens
    |  in the KV cache   |  this step's tokens   |  later (chunked)     |

A row that reaches `num_tokens` samples the next token. With drafts it computes these as well; they
lie behind the known tokens, and a draft is accepted if it is the token sampled at its position:

    positions     num_computed = num_tokens - 1 | num_tokens  num_tokens + 1 | (num_drafts = 2)
    this step         last known token          |   draft 1      draft 2     |
    samples            for draft 1              |  for draft 2    new token  | (num_sampled = 3)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.request import Failure, PoolingParams, PromptEmbeds, SamplingParams

I32 = NDArray[np.int32]
EMPTY_I32: I32 = np.empty(0, np.int32)
EMPTY_I64: NDArray[np.int64] = np.empty(0, np.int64)
#: A step may have this many logit rows however few sequences it may have.
MIN_LOGIT_ROWS = 256


def max_logit_rows(max_num_seqs: int) -> int:
    """Most logit rows of a step. Drafts and prompt logprobs share what sampling rows leave."""
    return max(max_num_seqs, MIN_LOGIT_ROWS)


def ragged_positions(counts: I32, starts: I32) -> I32:
    """counts[i] consecutive numbers from starts[i], for each i in turn: int32 [sum(counts)].

    counts 2 1 3, starts 7 0 4:   | 7 8 | 0 | 4 5 6 |
    """
    if len(counts) == 1:  # of one stream, where a step takes least time
        return np.arange(starts[0], starts[0] + counts[0], dtype=np.int32)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    positions: I32 = np.arange(total, dtype=np.int32) - np.repeat(ends - counts - starts, counts)
    return positions.astype(np.int32, copy=False)


class GroupSpec(msgspec.Struct, frozen=True):
    """A KV group: layers with one block table. Plain data: crosses processes.

    Attributes:
        kind: how blocks are used, a key of `kv.groups.GROUPS`.
        block_size: tokens per block.
        bytes_per_token: K and V of all the group's layers, for one token.
        window: sliding window in tokens; 0 = none.
        other_bytes: bytes of a block that are no token's: states, and padding to the size that
            all groups' blocks have.
        num_layers: layers in the group; caches of layers where it holds states.
        interval: of states: tokens between two that are kept for prefix hits; 0 = none is kept.
        width: blocks that hold one state.
    """

    kind: str
    block_size: int
    bytes_per_token: int
    window: int = 0
    other_bytes: int = 0
    num_layers: int = 0
    interval: int = 0
    width: int = 1

    def table_width(self, max_len: int) -> int:
        """Entries of the block table for a sequence of `max_len` tokens."""
        if self.kind == "state":
            return self.width * (-(-max_len // self.interval) if self.interval else 1)
        return -(-max_len // self.block_size)

    @property
    def block_bytes(self) -> int:
        return self.block_size * self.bytes_per_token + self.other_bytes


class NewRow(msgspec.Struct):
    """A request that enters a slot, with everything that a worker needs.

    `token_ids` is prompt + tokens produced so far, int32; `num_computed` counts the tokens found
    in the prefix cache (their blocks are in the plan's block columns); `adapter` is the number of
    an adapter's load, 0 = none; `cache_salt` separates users, of drafts too;
    `embeds` are rows of the prompt in place of those of its token ids.
    """

    slot: int
    handle: int
    token_ids: I32
    num_prompt: int
    num_computed: int
    params: SamplingParams | PoolingParams
    eos_token_ids: list[int]
    bad_words_token_ids: list[list[int]] = []
    adapter: int = 0
    cache_salt: str | None = None
    embeds: PromptEmbeds | None = None

    @property
    def sampling(self) -> SamplingParams:
        """Parameters of a row that samples."""
        assert isinstance(self.params, SamplingParams)
        return self.params


class StepPlan(msgspec.Struct):
    """One step's work, self-contained. Rows are in scheduling order.

    Attributes:
        step: counts from 1.
        slots: [n] slot of each row.
        num_new: [n] tokens to compute per row, >= 0, draft tokens included.
        num_logits: [n] how many of a row's last positions yield logits: 0 for an unfinished
            prefill chunk, num_sampled for a row that samples, more for prompt logprobs.
        num_sampled: [n] of a row's last logit rows, how many are sampled: 0, 1, or 1 + its drafts.
        handles, clients: [n] int64, int32, the request of each row and its client. Fixed when the
            step is planned: a slot may have another request when the result arrives.
        new_rows: requests that enter a slot before this step.
        freed_slots: slots that are empty before this step (applied before new_rows).
        block_groups, block_slots, block_indices, block_ids: [m] new blocks: group g's table of
            slot s gets block_ids at index i.
        copy_src, copy_dst: [c] block copies, done before the forward pass.
        forced_slots, forced_counts, forced_ids: [f], [f] and [sum], tokens that were appended to
            these slots without being sampled (`StepResult.num_forced`): `apply_plan` appends them.
        draft_ids: ragged draft tokens of the rows, `num_drafts` of each; empty = none. `apply_plan`
            writes them behind the known tokens.
        masked_logits: logit rows whose sampling is restricted by a mask, which comes separately
            (`Handle.sample`); ascending.
    """

    step: int
    slots: I32
    num_new: I32
    num_logits: I32
    num_sampled: I32
    handles: NDArray[np.int64] = EMPTY_I64
    clients: I32 = EMPTY_I32
    new_rows: list[NewRow] = []
    freed_slots: I32 = EMPTY_I32
    block_groups: I32 = EMPTY_I32
    block_slots: I32 = EMPTY_I32
    block_indices: I32 = EMPTY_I32
    block_ids: I32 = EMPTY_I32
    copy_src: I32 = EMPTY_I32
    copy_dst: I32 = EMPTY_I32
    forced_slots: I32 = EMPTY_I32
    forced_counts: I32 = EMPTY_I32
    forced_ids: I32 = EMPTY_I32
    draft_ids: I32 = EMPTY_I32
    masked_logits: I32 = EMPTY_I32
    connector: dict[str, Any] | None = None

    @property
    def num_drafts(self) -> I32:
        """[n] drafts of each row."""
        return drafts_among(self.num_sampled)


class LogprobColumns(msgspec.Struct):
    """Logprobs of some positions, ragged: entry i covers indptr[i]..indptr[i+1].

    The first candidate of an entry is the sampled (or prompt) token itself, then the top k in
    order, or the ones requested by id; `ranks` holds the first one's rank (1 = most likely).

    Attributes:
        rows: [e] index into the plan's rows.
        positions: [e] absolute position of the token that the logprobs are of.
        ranks: [e]; indptr: [e + 1]; token_ids, logprobs: [indptr[-1]] int32, float32.
    """

    rows: I32
    positions: I32
    ranks: I32
    indptr: I32
    token_ids: I32
    logprobs: NDArray[np.float32]

    def joined(self, other: LogprobColumns) -> LogprobColumns:
        """These entries, then the other ones."""
        return LogprobColumns(
            rows=np.concatenate((self.rows, other.rows)),
            positions=np.concatenate((self.positions, other.positions)),
            ranks=np.concatenate((self.ranks, other.ranks)),
            indptr=np.concatenate((self.indptr, other.indptr[1:] + self.indptr[-1])),
            token_ids=np.concatenate((self.token_ids, other.token_ids)),
            logprobs=np.concatenate((self.logprobs, other.logprobs)),
        )

    def select(self, keep: NDArray[np.bool_]) -> LogprobColumns:
        """The entries for which `keep` [e] holds."""
        counts = np.diff(self.indptr)
        candidates = np.repeat(keep, counts)
        indptr = np.zeros(int(keep.sum()) + 1, np.int32)
        np.cumsum(counts[keep], out=indptr[1:])
        return LogprobColumns(
            rows=self.rows[keep],
            positions=self.positions[keep],
            ranks=self.ranks[keep],
            indptr=indptr,
            token_ids=self.token_ids[candidates],
            logprobs=self.logprobs[candidates],
        )


class StepResult(msgspec.Struct):
    """Results of a step; rows as in its plan.

    Attributes:
        num_sampled: [n] tokens produced per row: its accepted drafts and one more, or 0; and its
            forced ones.
        num_forced: [n] how many of a row's last tokens were not sampled, because nothing else may
            come; empty = none. Workers do not know them yet: the next plan brings them.
        token_ids: [sum(num_sampled)] in row order.
        drafts_indptr, drafts_ids: ragged draft tokens for the next plan, [n + 1] and [sum], the
            guessed continuation of each row; empty = none.
        logprobs: of the sampled tokens, for rows that request them.
        prompt_logprobs: of prompt tokens, for rows that request them.
        pooled: slot -> float32 vector, for rows whose prompt is complete and that pool.
        errors: slot -> why, for rows that failed alone.
    """

    step: int
    num_sampled: I32
    token_ids: I32
    logprobs: LogprobColumns | None = None
    prompt_logprobs: LogprobColumns | None = None
    num_forced: I32 = EMPTY_I32
    drafts_indptr: I32 = EMPTY_I32
    drafts_ids: I32 = EMPTY_I32
    pooled: dict[int, NDArray[np.float32]] = {}
    errors: dict[int, Failure] = {}


def drafts_among(num_sampled: I32) -> I32:
    """Drafts of each row, [n], that samples so many tokens; of the tokens that count, those that
    were accepted. The last token is no draft."""
    drafts: I32 = np.maximum(num_sampled - 1, 0)
    return drafts


class TableAddresses(NamedTuple):
    """Where the columns of a table lie that native code reads beside a step."""

    token_ids: int
    num_tokens: int
    handles: int


class RequestTable:
    """Per-slot columns that change every step.

    token_ids [slots, max_len] int32, num_tokens / num_prompt / num_computed [slots] int32,
    block_tables [groups, slots, max_blocks] int32, num_blocks [groups, slots] int32.
    Memory is zero pages until touched. Sampling columns live with the runner's sampler
    (`params[slot]` holds the parameters of the row); the scheduler adds its own columns.
    """

    def __init__(self, num_slots: int, max_len: int, groups: list[GroupSpec]) -> None:
        self.num_slots = num_slots
        self.max_len = max_len
        self.groups = groups
        self.token_ids: I32 = np.zeros((num_slots, max_len), np.int32)
        self.num_tokens: I32 = np.zeros(num_slots, np.int32)
        self.num_prompt: I32 = np.zeros(num_slots, np.int32)
        self.num_computed: I32 = np.zeros(num_slots, np.int32)
        most_blocks = max((g.table_width(max_len) for g in groups), default=0)
        self.block_tables: I32 = np.zeros((len(groups), num_slots, most_blocks), np.int32)
        self.num_blocks: I32 = np.zeros((len(groups), num_slots), np.int32)
        self.handles: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        read = self.token_ids, self.num_tokens, self.handles
        self.addresses = TableAddresses(*(column.ctypes.data for column in read))
        self.params: list[SamplingParams | PoolingParams | None] = [None] * num_slots

    def clear_slot(self, slot: int) -> None:
        self.num_tokens[slot] = self.num_prompt[slot] = self.num_computed[slot] = 0
        self.num_blocks[:, slot] = 0
        self.handles[slot] = 0
        self.params[slot] = None

    def set_row(self, row: NewRow) -> None:
        n = len(row.token_ids)
        self.token_ids[row.slot, :n] = row.token_ids
        self.num_tokens[row.slot] = n
        self.num_prompt[row.slot] = row.num_prompt
        self.num_computed[row.slot] = row.num_computed
        self.handles[row.slot] = row.handle
        self.params[row.slot] = row.params

    def apply_plan(self, plan: StepPlan) -> None:
        """Apply freed slots, new rows, forced tokens, new blocks and drafts; until the result,
        lengths grow by the forced tokens alone.
        """
        for slot in plan.freed_slots:
            self.clear_slot(int(slot))
        for row in plan.new_rows:
            self.set_row(row)
        if len(plan.forced_ids):
            self.write_tokens(plan.forced_slots, plan.forced_counts, plan.forced_ids)
            self.num_tokens[plan.forced_slots] += plan.forced_counts
        if len(plan.block_ids):
            of: Any = slice(None)
            for g, table in enumerate(self.block_tables):
                if len(self.groups) > 1:
                    of = plan.block_groups == g
                s, i = plan.block_slots[of].astype(np.intp), plan.block_indices[of]
                table[s, i] = plan.block_ids[of]
                np.maximum.at(self.num_blocks[g], s, i + 1)
        if len(plan.draft_ids):
            self.write_tokens(plan.slots, plan.num_drafts, plan.draft_ids)

    def write_tokens(self, slots: NDArray[Any], counts: I32, token_ids: I32) -> None:
        """Write counts[i] tokens behind the known ones of slots[i]; lengths stay."""
        rows = np.repeat(slots, counts)
        self.token_ids[rows, ragged_positions(counts, self.num_tokens[slots])] = token_ids

    def apply_result(self, plan: StepPlan, result: StepResult) -> None:
        """Advance lengths and append the sampled tokens."""
        slots = plan.slots.astype(np.intp)
        counts = result.num_sampled
        num_new = plan.num_new
        if len(plan.draft_ids):  # tokens computed for rejected drafts do not count
            sampled = counts - result.num_forced if len(result.num_forced) else counts
            num_new = num_new - (plan.num_drafts - drafts_among(sampled))
        self.num_computed[slots] += num_new
        total = len(result.token_ids)
        if not total:
            return
        rows = np.count_nonzero(counts)
        if rows == total:  # at most one each
            if rows < len(slots):
                slots = slots[counts > 0]
            ends = self.num_tokens[slots]
            self.token_ids[slots, ends] = result.token_ids
            self.num_tokens[slots] = ends + 1
            return
        self.write_tokens(slots, counts, result.token_ids)
        self.num_tokens[slots] += counts


def _enc(obj: Any) -> Any:
    if isinstance(obj, np.ndarray):
        return (obj.dtype.str, list(obj.shape), obj.tobytes())
    raise TypeError(f"cannot send a {type(obj).__name__}")


def _dec(tp: Any, obj: Any) -> Any:
    dtype, shape, data = obj
    return np.frombuffer(data, np.dtype(dtype)).reshape(shape)


_encoder = msgspec.msgpack.Encoder(enc_hook=_enc)
_plan_decoder = msgspec.msgpack.Decoder(StepPlan, dec_hook=_dec)
_result_decoder = msgspec.msgpack.Decoder(StepResult, dec_hook=_dec)


def encode_plan(plan: StepPlan) -> bytes:
    return _encoder.encode(plan)


def decode_plan(data: bytes) -> StepPlan:
    return _plan_decoder.decode(data)


def encode_result(result: StepResult) -> bytes:
    return _encoder.encode(result)


def decode_result(data: bytes) -> StepResult:
    return _result_decoder.decode(data)
