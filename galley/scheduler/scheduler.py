"""Decides which sequences run in a step and with how many tokens: one budget, one rule.

Every sequence lets `num_computed` catch up with `num_tokens`; prompt chunks, prefix hits, decode,
resumption after preemption and replay are the same arithmetic. Running sequences are served
first, those that need one token before those that need more; then waiting ones are admitted in
the order of the policy. If blocks run out, sequences are preempted before anything is granted, so
that nothing planned for a step has to be taken back.

`schedule` and `commit` are apart. Knows no model, no text and no process: it speaks `StepPlan`
and `StepResult`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.batch import (
    EMPTY_I32,
    I32,
    NewRow,
    RequestTable,
    StepPlan,
    StepResult,
    drafts_among,
    ragged_positions,
)
from galley.kv import Hit, KVCacheManager
from galley.request import Failure, FailureKind, FinishReason, Request
from galley.scheduler.adapters import DEFERRED, AdapterBudget
from galley.scheduler.commit import CommittedStep, drop_rows, find_ends, find_pooled
from galley.scheduler.draft_counts import DraftCounts
from galley.scheduler.fair_share import ByClient, FairShare
from galley.scheduler.limits import SchedulerLimits
from galley.scheduler.overtaking import split_short, waiting_short
from galley.scheduler.pace import StepPace
from galley.scheduler.queue import ByPriority, Fcfs, WaitingQueue
from galley.scheduler.rows import Slots, StepColumns, StepRows
from galley.scheduler.running import Running
from galley.scheduler.sequence import Sequence, SequenceEnd, SequenceStart


class Scheduler:
    """Owns the queue, the running sequences and the request table.

    Args:
        kv: the blocks of the sequences in `table`.
        table: columns by slot; as many slots as `limits.max_num_seqs`.
        limits: of a step.

    Attributes:
        step: number of the last plan.
        step_tokens: tokens that it computes.
        counters: of the engine; preemptions are counted here.
        draft_counts: drafts of the steps.
        reports_drafts: whether committed steps say how many each row had.
    """

    def __init__(self, kv: KVCacheManager, table: RequestTable, limits: SchedulerLimits) -> None:
        assert table.num_slots == limits.max_num_seqs
        self.kv = kv
        self.table = table
        self.limits = limits
        by_priority = limits.policy == "priority"
        order = ByPriority if by_priority else Fcfs
        self._share = FairShare(table.num_slots) if limits.by_client else None
        self.queue = WaitingQueue(
            ByClient(self._share, order, by_priority) if self._share is not None else order()
        )
        self.running = Running(table.num_slots)
        self._adapters = AdapterBudget(limits.max_adapters)
        self.step = 0
        self.step_tokens = 0
        self.counters = kv.counters
        self.draft_counts = DraftCounts()
        self.reports_drafts = False
        self._unfinished: dict[tuple[int, int], Sequence] = {}
        self._num_arrived = 0
        self._pace = StepPace(limits.target_step_seconds) if limits.target_step_seconds else None
        self._planned = 0, 0
        self._overtaking: list[Sequence] = []
        self._blocked = 0, 0
        self._in_flight = False
        self._aborted: list[Sequence] = []
        self._started: list[SequenceStart] = []
        self._ended: list[SequenceEnd] = []
        self._ones: I32 = np.ones(table.num_slots, np.int32)

    # --- arrivals and aborts --------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step would compute or report something. Parked requests are no work."""
        return bool(len(self.running) or len(self.queue) or self._ended)

    @property
    def unfinished(self) -> list[Request]:
        """The requests that wait or run, in order of arrival."""
        return [seq.request for seq in self._unfinished.values()]

    @property
    def has_ends(self) -> bool:
        """Whether there are ends to report that need no step."""
        return bool(self._ended)

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        return self.queue.num_waiting

    @property
    def waiting_by_reason(self) -> dict[str, int]:
        return self.queue.num_by_reason

    def add(self, request: Request, parked: str | None = None) -> None:
        """Queue a request. One that can never run ends at once, with an error.

        Args:
            parked: what it has to wait for before it may be admitted (see `unpark`).
        """
        self._num_arrived += 1
        chain = self.kv.new_chain(
            request.cache_salt,
            (request.client_index, request.share_group) if request.share_group else None,
            request.adapter,
            None if request.embeds is None else request.embeds.keys(self.kv.block_size),
        )
        if request.in_one_piece:
            chain = None
        limits = self.limits
        seq = Sequence(request, self._num_arrived, time.time(), limits.max_model_len, chain)
        assert seq.key not in self._unfinished, f"handle {seq.key} is in use"
        end = self._end_on_arrival(seq)
        if end is not None:
            self._ended.append(end)
            return
        self._unfinished[seq.key] = seq
        if self._share is not None:
            self._share.arrive(request.client)
        if parked is None:
            self.queue.push(seq)
        else:
            self.queue.park(seq, parked)

    def unpark(self, handle: int, client_index: int = 0) -> None:
        """Unpark a request: its condition is met. Unknown handles are ignored."""
        seq = self._unfinished.get((client_index, handle))
        if seq is not None and seq in self.queue.parked:
            self.queue.unpark(seq)

    def fail(self, handle: int, error: Failure, client_index: int = 0) -> None:
        """Fail a parked request: its condition cannot be met. Unknown handles are ignored."""
        seq = self._unfinished.get((client_index, handle))
        if seq is not None and seq in self.queue.parked:
            self.queue.discard(seq)
            self._forget(seq.end(FinishReason.ERROR, error=error))

    def _end_on_arrival(self, seq: Sequence) -> SequenceEnd | None:
        if reason := self._unfit(seq):
            error = Failure(reason, FailureKind.REQUEST, "prompt")
            return seq.end(FinishReason.ERROR, error=error)
        if len(seq.token_ids) > seq.num_prompt and (end := seq.ending(seq.token_ids)):
            return end
        most = self.limits.max_waiting
        if most and self.num_waiting >= most:
            reason = f"{most} requests are waiting already; try again later."
            return seq.end(FinishReason.ERROR, error=Failure(reason, FailureKind.LOAD))
        return None

    def _unfit(self, seq: Sequence) -> str | None:
        """The reason why a request can never run."""
        n, limits = seq.num_prompt, self.limits
        if not n:
            return "The prompt is empty."
        if seq.request.pools and n > limits.max_model_len:
            return f"The prompt has {n} tokens, --max-model-len is {limits.max_model_len}."
        if seq.in_one_piece and n > limits.max_num_batched_tokens:
            return (
                f"The prompt has {n} tokens and is computed in one piece, but a step has at most "
                f"{limits.max_num_batched_tokens} (--max-num-batched-tokens)."
            )
        if n >= seq.limit and not seq.request.pools:
            return (
                f"The prompt has {n} tokens, which leaves no room for output within "
                f"{seq.limit} tokens (--max-model-len is {limits.max_model_len})."
            )
        return None

    def abort(self, handles: Iterable[int], client_index: int = 0) -> None:
        """End requests; unknown handles are ignored.

        While a step is in flight, its rows stay in place until `commit`, which drops their tokens.
        """
        for handle in handles:
            seq = self._unfinished.get((client_index, handle))
            if seq is None or seq.ended:
                continue
            if seq.slot < 0:
                self.queue.discard(seq)
                self._forget(seq.end(FinishReason.ABORT))
            elif self._in_flight:
                seq.ended = True
                self._aborted.append(seq)
            else:
                self._finish(seq.end(FinishReason.ABORT))

    # --- schedule -------------------------------------------------------------------------------

    def schedule(self) -> StepPlan | None:
        """Plan a step, or None if nothing can run. `commit` must follow before the next call."""
        assert not self._in_flight, "the last plan is not committed"
        preempted = self.counters.num_preemptions
        rows, columns = self._schedule_running()
        new_rows: list[NewRow] = []
        if len(self.queue) and self.counters.num_preemptions == preempted:
            new_rows = self._admit(rows)
            if new_rows:
                columns = rows.columns()
        if not len(columns.slots):
            return None
        self.step += 1
        self.step_tokens = rows.num_tokens
        self._planned = rows.num_decode_tokens, rows.num_prompt_tokens
        self.counters.prompt_tokens += rows.num_prompt_tokens
        self._in_flight = True
        groups, slots, indices, ids = self.kv.take_changes()
        unsent, unsent_counts, unsent_ids = self._unsent_columns()
        return StepPlan(
            step=self.step,
            slots=columns.slots.astype(np.int32),
            num_new=columns.num_new,
            num_logits=columns.num_logits,
            num_sampled=columns.num_sampled,
            handles=self.table.handles[columns.slots],
            clients=self.running.clients[columns.slots],
            new_rows=new_rows,
            freed_slots=self.running.take_freed(),
            block_groups=groups,
            block_slots=slots,
            block_indices=indices,
            block_ids=ids,
            forced_slots=unsent,
            forced_counts=unsent_counts,
            forced_ids=unsent_ids,
            draft_ids=self._draft_ids(columns) if self.running.has_drafts else EMPTY_I32,
        )

    def _unsent_columns(self) -> tuple[I32, I32, I32]:
        """The plan's `forced_slots`, `forced_counts` and `forced_ids`."""
        if not self.running.has_unsent:
            return EMPTY_I32, EMPTY_I32, EMPTY_I32
        slots, counts = self.running.take_unsent()
        positions = ragged_positions(counts, self.table.num_tokens[slots] - counts)
        ids = self.table.token_ids[np.repeat(slots, counts), positions]
        return slots.astype(np.int32), counts, ids

    def _draft_ids(self, columns: StepColumns) -> I32:
        """The plan's `draft_ids`."""
        counts = drafts_among(columns.num_sampled)
        rows = np.repeat(columns.slots, counts)
        positions = ragged_positions(counts, self.table.num_tokens[columns.slots])
        return self.table.token_ids[rows, positions]

    def _schedule_running(self) -> tuple[StepRows, StepColumns]:
        """Grant tokens and blocks to the running, preempting until the blocks suffice."""
        kv, table, running = self.kv, self.table, self.running
        if kv.has_windows:
            kv.free_out_of_window(running.order)
        lookahead = self.limits.lookahead
        while True:
            rows = self._grant()
            columns = rows.columns()
            slots, num_new = columns.slots, columns.num_new
            totals = table.num_computed[slots] + num_new
            ahead = np.minimum(totals + lookahead, table.max_len) if lookahead else totals
            missing = kv.missing_blocks(slots, ahead)
            # Blocks of rejected drafts, and those ahead, are kept for the next tokens.
            if running.had_drafts or self.limits.lookahead:
                np.maximum(missing, 0, out=missing)
            growing = np.count_nonzero(missing)
            if not growing or kv.can_grow(missing):
                break
            if lookahead:
                lookahead = 0
            elif running.has_drafts:  # a guess is not worth a preemption
                running.drop_drafts()
            else:
                self._preempt(self._victim())
        if growing or rows.num_tokens > len(slots):
            kv.grow(slots, missing)
            known = totals
            changed: NDArray[Any]  # which rows: a mask, or indices
            if running.has_drafts or self.limits.lookahead:
                # Only known tokens: a block of drafts would be found under a key that may be wrong.
                known = np.minimum(totals, table.num_tokens[slots])
                changed = kv.has_uncached(slots, known)
            elif rows.num_tokens > len(slots):
                changed = (num_new > 1) | missing.any(0)
            else:  # a decoding row's last block is full when it needs another
                changed = missing.nonzero()[1]
            kv.cache_blocks(slots[changed].tolist(), known[changed].tolist())
        return rows, columns

    def _grant(self) -> StepRows:
        """Share the budget among the running: decodes first, then prompts, each in order."""
        slots = self.running.order
        n, limits = len(slots), self.limits
        self._overtaking = []
        need = self.table.num_tokens[slots] - self.table.num_computed[slots]
        pooling = self.running.pooling
        if (
            n <= limits.max_num_batched_tokens
            and not pooling
            and not np.count_nonzero(need - self._ones[:n])
        ):
            return self._grant_decodes(slots)
        decode = need <= 1
        if pooling:  # they sample nothing, so their last token is one of a prompt, too
            decode &= ~np.isin(slots, list(pooling))
        rows = self._grant_decodes(slots[decode][: limits.max_num_batched_tokens])
        left = self._left_for_prompts(rows)
        prompts = list(zip(slots[~decode].tolist(), need[~decode].tolist(), strict=True))
        if self._pace is not None and prompts and prompts[0][1] > left:
            short, prompts = split_short(prompts)
            self._add_chunks(rows, short, left // 2)
            left -= self._hold_for_overtaking(prompts[0], left // 2 - rows.num_prompt_tokens)
        self._add_chunks(rows, prompts, left)
        return rows

    def _left_for_prompts(self, rows: StepRows) -> int:
        """Tokens that all prompts of a step may have beside its decoding rows."""
        left = self.limits.left_for_prompts(rows.num_decode_tokens)
        if self._pace is not None and rows.num_decode_tokens:
            num_prompts = len(self.running) - len(rows.decode_slots)
            num_prompts += min(len(self.queue), self.running.num_empty)
            left = min(left, self._pace.prompt_tokens(rows.num_decode_tokens, num_prompts))
        return left

    def _add_chunks(self, rows: StepRows, prompts: list[tuple[int, int]], left: int) -> None:
        """Add a chunk of each (slot, tokens it needs), until prompts have `left` tokens in all."""
        cap = self.limits.chunk_cap(len(self.running) + len(self.queue))
        for slot, need in prompts:
            computed, seq = int(self.table.num_computed[slot]), self.running.at(slot)
            logits = self.limits.max_num_logits - rows.num_logits
            num_new, num_logits = self._chunk(
                seq, computed, need, left - rows.num_prompt_tokens, logits, cap
            )
            if num_new:
                rows.add(slot, num_new, num_logits, num_new == need and not seq.pools)

    def _hold_for_overtaking(self, first: tuple[int, int], most: int) -> int:
        """Choose the waiting sequences that `_admit` lets overtake the prompt `first`, a slot and
        the tokens it needs. Returns how many of `most` tokens are held for them.
        """
        if not len(self.queue) or not self.running.has_room or most < 1:
            return 0
        slot, need = first
        by_priority = self.limits.policy == "priority"
        seq = self.running.at(slot)
        self._overtaking = waiting_short(self.queue, seq, need, self.kv, by_priority)
        return min(most, sum(len(seq.token_ids) for seq in self._overtaking))

    def _grant_decodes(self, slots: Slots) -> StepRows:
        """One token for each of `slots`; drafts, in order, share the rest of the budget."""
        n = len(slots)
        if not self.running.has_drafts:
            return StepRows(slots, self._ones[:n], n)
        drafts = self.running.num_drafts[slots]
        room = min(self.limits.max_num_batched_tokens, self.limits.max_num_logits) - n
        room = min(room, self.limits.max_drafts)
        if drafts.sum() > room:
            drafts = np.clip(room - (np.cumsum(drafts) - drafts), 0, drafts).astype(np.int32)
        return StepRows(slots, drafts + 1, n + int(drafts.sum()))

    def _chunk(
        self, seq: Sequence, computed: int, need: int, left: int, logits: int, cap: int
    ) -> tuple[int, int]:
        """Tokens and rows of logits for a sequence that needs `need` tokens from `computed` on.

        Args:
            left, logits: remaining budgets of the step, in tokens and rows of logits.
            cap: most tokens of a prompt; 0 = as many as are left.
        """
        n = min(need, left)
        if seq.pools:
            logits = need  # it takes none
        if seq.wants_prompt_logprobs:
            # Positions from `first` on yield logits; a chunk ends where their rows run out.
            first = max(computed, seq.num_prompt_scored)
            n = min(n, first - computed + logits)
        elif n == need and not logits:
            n -= 1  # its last position has to wait for a row of logits
        if self.limits.enable_chunked_prefill and not seq.in_one_piece:
            if 0 < cap < n:
                n = cap
        elif n < need and not seq.wants_prompt_logprobs:
            return 0, 0
        if seq.wants_prompt_logprobs:
            return n, max(computed + n - first, 0)
        return n, int(n == need and not seq.pools)

    def _admit(self, rows: StepRows) -> list[NewRow]:
        """Admit waiting sequences to slots, while budget and blocks last: those that overtake, then
        strictly in order.
        """
        left = self._left_for_prompts(rows)
        new_rows: list[NewRow] = []
        running_prompts = rows.num_prompt_tokens
        for short in self._overtaking:
            if (
                rows.num_prompt_tokens < left
                and self.running.has_room
                and self._adapters.admits(short.request.adapter)
                and (row := self._admit_one(short, rows, left)) is not None
            ):
                new_rows.append(row)
        # A request that did not fit does not fit until blocks are released or a prompt is cached.
        while (
            rows.num_prompt_tokens < left and self.running.has_room and (seq := self.queue.first())
        ):
            if not self._adapters.admits(seq.request.adapter):
                self.queue.take(seq)
                self.queue.park(seq, DEFERRED)
                continue
            if not running_prompts and self._blocked == (seq.arrival, self.kv.pool.num_freed):
                break
            row = self._admit_one(seq, rows, left)
            if row is None:
                break
            new_rows.append(row)
        return new_rows

    def _admit_one(self, seq: Sequence, rows: StepRows, left: int) -> NewRow | None:
        """Admit a waiting sequence. None: it does not fit, in tokens or in blocks."""
        hit = Hit()
        if seq.chain is not None and seq.reads_cache:
            hit = self.kv.find_hit(seq.chain, seq.token_ids)
        n = len(seq.token_ids)
        need = n - hit.num_tokens
        logits = self.limits.max_num_logits - rows.num_logits
        cap = self.limits.chunk_cap(len(self.running) + len(self.queue))
        num_new, num_logits = self._chunk(
            seq, hit.num_tokens, need, left - rows.num_prompt_tokens, logits, cap
        )
        if not num_new:
            return None
        if not self.kv.can_admit(hit, n):
            self._blocked = seq.arrival, self.kv.pool.num_freed
            return None
        self.queue.take(seq)
        row = self._enter_slot(seq, hit, num_new)
        rows.add(seq.slot, num_new, num_logits, num_new == need and not seq.pools)
        return row

    def _enter_slot(self, seq: Sequence, hit: Hit, num_new: int) -> NewRow:
        request, kv = seq.request, self.kv
        slot = self.running.add(seq)
        self._adapters.enter(request.adapter)
        if self._share is not None:
            self._share.enter(seq)
        row = NewRow(
            slot=slot,
            handle=request.handle,
            token_ids=seq.token_ids,
            num_prompt=seq.num_prompt,
            num_computed=hit.num_tokens,
            params=request.params,
            adapter=request.adapter,
            cache_salt=request.cache_salt,
            embeds=request.embeds,
            eos_token_ids=request.eos_token_ids,
            bad_words_token_ids=request.bad_words_token_ids,
        )
        self.table.set_row(row)
        kv.admit(slot, seq.chain, hit)
        total = hit.num_tokens + num_new
        kv.grow_one(slot, total, min(total + self.limits.lookahead, self.table.max_len))
        kv.cache_blocks([slot], [total])
        resumed = seq.num_preemptions > 0
        if seq.reads_cache:
            kv.count_query(len(seq.token_ids), hit, resumed)
        cached = hit.num_tokens if kv.enable_prefix_caching else 0
        self._started.append(
            SequenceStart(
                request.client_index, request.handle, cached, seq.queued_time, time.time(), resumed
            )
        )
        return row

    # --- preemption -----------------------------------------------------------------------------

    def _victim(self) -> Sequence:
        order = self.running.order
        assert len(order), "the pool is too small for one sequence"
        if self.limits.policy == "priority":
            return max(map(self.running.at, order.tolist()), key=lambda seq: seq.importance)
        return self.running.at(int(order[-1]))

    def _preempt(self, seq: Sequence) -> None:
        """Free a running sequence's blocks and slot; it waits with all of its tokens."""
        slot = seq.slot
        seq.token_ids = self.table.token_ids[slot, : self.table.num_tokens[slot]].copy()
        seq.num_preemptions += 1
        self.counters.num_preemptions += 1
        self._free_slot(seq)
        self.queue.push_front(seq)

    def _free_slot(self, seq: Sequence) -> None:
        slot = seq.slot
        self.kv.free(slot, int(self.table.num_computed[slot]))
        self.table.clear_slot(slot)
        self.running.remove(seq)
        if self._adapters.leave(seq.request.adapter):
            self._unpark_deferred()

    def _unpark_deferred(self) -> None:
        """Queue the sequences of the adapter that has waited for longest."""
        deferred = self.queue.parked_for(DEFERRED)
        if deferred:
            adapter = min(deferred, key=lambda seq: seq.arrival).request.adapter
            for seq in deferred:
                if seq.request.adapter == adapter:
                    self.queue.unpark(seq)

    def set_reserved_blocks(self, num_blocks: int) -> list[int]:
        """Keep so many KV blocks from everybody, instead of as many as until now; never so many
        that one sequence of the longest length would find no room. Running sequences return to the
        queue where there is no other way. Returns the blocks whose memory may be given back.
        """
        assert not self._in_flight
        pool = self.kv.pool
        longest = self.kv.most_held(self.limits.max_model_len)
        num_blocks = max(min(num_blocks, pool.num_blocks - 1 - longest), 0)
        while num_blocks > pool.num_free + pool.num_reserved:
            self._preempt(self._victim())
        self._blocked = 0, 0
        return pool.set_reserved(num_blocks)

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Drop cached prefixes. False, and nothing changes, while blocks are in use.

        With `reset_running_requests`, running sequences first return to the queue in their order
        and are recomputed.
        """
        assert not self._in_flight
        if reset_running_requests:
            for slot in self.running.order[::-1].tolist():
                self._preempt(self.running.at(slot))
        return self.kv.reset_prefix_cache()

    # --- commit ---------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult) -> CommittedStep:
        """Apply a result: advance lengths, find the sequences that end, free them."""
        assert self._in_flight
        assert result.step == plan.step
        self._in_flight = False
        table, running = self.table, self.running
        table.apply_result(plan, result)
        drafts = self.draft_counts.add(plan, result) if len(plan.draft_ids) else EMPTY_I32
        slots = plan.slots.astype(np.intp)
        counts = result.num_sampled
        if self._share is not None:
            self._share.charge(slots, counts)
        done = CommittedStep(
            step=plan.step,
            row_handles=plan.handles,
            row_clients=plan.clients,
            token_ids=result.token_ids,
            drafts=drafts if self.reports_drafts else EMPTY_I32,
            logprobs=result.logprobs,
            prompt_logprobs=result.prompt_logprobs,
        )
        if len(result.num_forced):
            running.set_unsent(slots, result.num_forced)
        if running.scoring:
            self._advance_scoring(slots)
        failures = self._failures(result) if result.errors or self._aborted else []
        if failures:
            dead = [self._unfinished[end.client_index, end.handle].slot for end in failures]
            done.rows = drop_rows(done, slots, counts, dead)
        elif np.count_nonzero(counts) < len(slots):
            done.rows = np.flatnonzero(counts)
        if done.rows is not None:
            slots, counts = slots[done.rows], counts[done.rows]
        ends = failures + find_ends(done, slots, counts, table, running)
        if running.pooling:
            ends += find_pooled(plan, result, failures, table, running)
        for end in ends:
            self._finish(end)
        if running.has_drafts or len(result.drafts_ids):
            self._take_drafts(plan, result)
        return self._with_events(done)

    def record_time(self, seconds: float) -> None:
        """The last plan was computed in so many seconds."""
        if self._pace is not None:
            self._pace.record(*self._planned, seconds)

    def _take_drafts(self, plan: StepPlan, result: StepResult) -> None:
        """Replace the drafts of the plan's rows by the result's, as far as the length allows."""
        table, running = self.table, self.running
        slots = plan.slots.astype(np.intp)
        if not len(result.drafts_ids):
            running.set_drafts(slots, np.zeros(len(slots), np.int32))
            return
        ends, ids = result.drafts_indptr, result.drafts_ids
        offered, known = ends[1:] - ends[:-1], table.num_tokens[slots]
        # The last token of a sequence is sampled, never a draft.
        room = np.minimum(running.limits[slots] - known - 1, self.limits.max_row_drafts)
        room[table.num_computed[slots] + 1 != known] = 0  # not decoding, or an empty slot
        counts = np.minimum(offered, np.maximum(room, 0))
        if (counts < offered).any():
            places = ragged_positions(offered, np.zeros_like(offered))
            ids = ids[places < np.repeat(counts, offered)]
        table.write_tokens(slots, counts, ids)
        running.set_drafts(slots, counts)

    def take_events(self) -> CommittedStep:
        """Ends that needed no step (aborts, refused arrivals)."""
        return self._with_events(CommittedStep())

    def _with_events(self, done: CommittedStep) -> CommittedStep:
        if self._started:
            done.started, self._started = self._started, []
        if self._ended:
            done.ended, self._ended = self._ended, []
        return done

    def _failures(self, result: StepResult) -> list[SequenceEnd]:
        """Ends of rows that were aborted in flight or failed alone."""
        ends = [seq.end(FinishReason.ABORT) for seq in self._aborted]
        gone = {seq.slot for seq in self._aborted}
        self._aborted.clear()
        for slot, error in result.errors.items():
            if slot not in gone:
                ends.append(self.running.at(slot).end(FinishReason.ERROR, error=error))
        return ends

    def _advance_scoring(self, slots: Slots) -> None:
        """Prompt positions just computed have yielded their logprobs."""
        for slot in self.running.scoring & set(slots.tolist()):
            seq = self.running.at(slot)
            seq.num_prompt_scored = max(seq.num_prompt_scored, int(self.table.num_computed[slot]))
            if not seq.wants_prompt_logprobs:
                self.running.scoring.discard(slot)

    def _finish(self, end: SequenceEnd) -> None:
        """A running sequence ends: its blocks and its slot are free."""
        self._free_slot(self._unfinished[end.client_index, end.handle])
        self._forget(end)

    def _forget(self, end: SequenceEnd) -> None:
        seq = self._unfinished.pop((end.client_index, end.handle))
        seq.ended = True
        if self._share is not None:
            self._share.leave(seq.request.client)
        self._ended.append(end)

    def check_integrity(self) -> None:
        """Prove the invariants between queue, slots and blocks; AssertionError otherwise."""
        order = self.running.order.tolist()
        self.kv.check_integrity(order)
        assert len(set(order)) == len(order)
        waiting = list(self.queue)
        assert len(waiting) == len(self.queue)
        parked = self.queue.parked
        assert len(waiting) + len(parked) + len(order) == len(self._unfinished)
        assert not any(seq.ended for seq in parked)
        for slot in order:
            assert self._unfinished[self.running.at(slot).key].slot == slot
            n, computed = int(self.table.num_tokens[slot]), int(self.table.num_computed[slot])
            assert 0 <= computed < n or self._in_flight
