"""The constrained sequences of an engine, and their part in each step.

    arrive ──▶ (parked while its constraint compiles: settle) ──▶ plan ──▶ masks ──▶ advance ──▶ end

The state of a sequence follows from its constraint and its output tokens alone: it is the same
after a preemption, and in an engine that takes over the requests of another one. Without
constrained sequences nothing of this runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import RequestTable, StepPlan, StepResult, ragged_positions
from galley.messages import Counters
from galley.request import Failure, FailureKind, MarkerTable, Request
from galley.structured.backend import Backend, MaskRows, Matcher
from galley.structured.compiler import Compiled, Compiler, key_of
from galley.structured.drafts import review_drafts

#: Why a sequence is parked.
PARKED = "grammar"
EVERY_TOKEN = np.uint64(2**64 - 1)
NOT_ALLOWED = "the constraint does not allow its last token"

#: Client index and handle of a request.
Key = tuple[int, int]


class ConstrainedSequence(msgspec.Struct, eq=False):
    """One sequence.

    Attributes:
        jumps: whether tokens that are certain are appended without being sampled.
        drafts_certain: whether they may be drafts, else.
        started: whether the constraint applies; else to what follows one of `markers`.
        states: how much of each marker precedes.
        num_seen: output tokens taken note of.
        slot: the last one that it entered.
    """

    request: Request
    jumps: bool
    drafts_certain: bool
    markers: tuple[MarkerTable, ...]
    started: bool
    backend: Backend | None = None
    matcher: Matcher | None = None
    num_seen: int = 0
    slot: int = 0
    states: tuple[int, ...] = ()

    @classmethod
    def of(cls, request: Request, jump_forward: bool, drafts: bool) -> ConstrainedSequence:
        assert request.constraint is not None
        markers = tuple(marker.table() for marker in request.constraint.start_after)
        jumps, states = jump_forward and _may_jump(request), (0,) * len(markers)
        params = request.sampling
        drafts = drafts and params.speculative and not params.logits_processors
        return cls(request, jumps, drafts, markers, not markers, states=states)

    def attach(self, compiled: Compiled) -> None:
        assert compiled.grammar is not None
        self.backend, self.matcher = compiled.backend, compiled.grammar.matcher()
        constraint = self.request.constraint
        if constraint is not None and constraint.num_written:
            prompt = np.frombuffer(self.request.prompt_token_ids, np.int32)
            self.matcher.advance(prompt[-constraint.num_written :].tolist())

    def see(self, token_ids: list[int]) -> str | None:
        """Take note of further output. Returns the error if it is not allowed. What drafts have
        brought behind an end token is no output.
        """
        assert self.matcher is not None
        ends = self.request.eos_token_ids
        last = next((i for i, token_id in enumerate(token_ids) if token_id in ends), None)
        if last is not None:
            token_ids = token_ids[: last + 1]
        self.num_seen += len(token_ids)
        if not self.started:
            free, self.states = self._search(token_ids)
            self.started = free is not None
            token_ids = [] if free is None else token_ids[free:]
        if not token_ids or self.matcher.advance(token_ids):
            return None
        return self.matcher.error or NOT_ALLOWED

    def failure(self, reason: str) -> Failure:
        """The end of a request whose text left its constraint: the vocabulary cannot write what
        the constraint demands, or the backend gave it up.
        """
        assert self.request.constraint is not None
        field = self.request.constraint.field
        message = f"{field}: the answer cannot go on: {reason}"
        return Failure(message, FailureKind.REQUEST, field)

    def may_go_on(self, token_ids: list[int]) -> bool:
        """Whether none of these tokens ends the text."""
        return not any(end in token_ids for end in self.request.eos_token_ids)

    def free_tokens(self, token_ids: Sequence[int]) -> int | None:
        """How many of the next tokens precede the constraint; None if all do and more may."""
        return 0 if self.started else self._search(token_ids)[0]

    def _search(self, token_ids: Sequence[int]) -> tuple[int | None, tuple[int, ...]]:
        """Where among the next tokens the first marker ends, and the states behind them."""
        states = self.states
        for place, token_id in enumerate(token_ids):
            states = tuple(
                marker.step(state, token_id)
                for marker, state in zip(self.markers, states, strict=True)
            )
            if any(s >= marker.size for s, marker in zip(states, self.markers, strict=True)):
                return place + 1, states
        return None, states

    def reviewed(self, drafts: list[int]) -> list[int]:
        """The drafts that the constraint allows; or those that are certain, where these are more
        and have to be sampled nevertheless.
        """
        assert self.matcher is not None
        free = self.free_tokens(drafts)
        if free is None:
            return drafts
        kept = drafts[: free + self.matcher.accepted(drafts[free:])]
        if self.jumps or not self.started or not self.drafts_certain:
            return kept
        certain = self.matcher.forced_tokens()
        return certain if len(certain) > len(kept) else kept

    def forced_tokens(self, room: int) -> list[int]:
        """Append the tokens that are certain, at most `room`; returns them."""
        assert self.matcher is not None
        forced: list[int] = []
        ends = self.request.eos_token_ids
        while len(forced) < room:
            more = self.matcher.forced_tokens()[: room - len(forced)]
            if not more or not self.matcher.advance(more):
                break
            forced += more
            if more[-1] in ends:
                break
        self.num_seen += len(forced)
        return forced


def _may_jump(request: Request) -> bool:
    """Whether nothing but its constraint matters where that leaves one token."""
    params = request.sampling
    return not (
        params.wants_logprobs
        or params.logits_processors
        or params.logit_bias
        or params.allowed_token_ids is not None
        or request.bad_words_token_ids
    )


class ConstrainedSequences:
    """See the module. All methods belong to the engine's thread.

    Args:
        num_slots, vocab_size: of the engine's table and of a row of logits.
        counters: of the engine; masks, forced tokens and their seconds are added to them.
        processed: every token is sampled from logits that processors have seen: none is appended
            or drafted because it is certain.

    Attributes:
        jump_forward: append tokens that are certain without a forward pass each.
    """

    def __init__(
        self,
        compiler: Compiler,
        num_slots: int,
        vocab_size: int,
        counters: Counters,
        processed: bool = False,
    ) -> None:
        self.compiler = compiler
        self.jump_forward, self._drafts = not processed, not processed
        self._counters = counters
        self._masks: MaskRows = np.empty((0, -(-vocab_size // 64)), np.uint64)
        self._sequences: dict[Key, ConstrainedSequence] = {}
        self._compiling: dict[Key, ConstrainedSequence] = {}
        self._by_slot: list[ConstrainedSequence | None] = [None] * num_slots
        self._in_slot: NDArray[np.bool_] = np.zeros(num_slots, np.bool_)
        #: of the step under way: rows of the plan, and their sequences
        self._rows: NDArray[np.intp] = np.empty(0, np.intp)
        self._row_sequences: list[ConstrainedSequence] = []

    def __len__(self) -> int:
        """Sequences that have not ended."""
        return len(self._sequences)

    # --- arrival and end ------------------------------------------------------------------------

    def arrive(self, request: Request) -> str | None:
        """Accept a request with a constraint. Returns why it has to be parked; None: it has not."""
        assert request.constraint is not None
        key, seq = _key(request), ConstrainedSequence.of(request, self.jump_forward, self._drafts)
        self._sequences[key] = seq
        compiled = self.compiler.get(request.constraint, tuple(request.eos_token_ids))
        if compiled is not None:
            seq.attach(compiled)
            return None
        self._compiling[key] = seq
        return PARKED

    @property
    def has_settled(self) -> bool:
        """Whether `settle` would return something."""
        return bool(self._compiling) and self.compiler.has_done

    def settle(self) -> list[tuple[Key, Failure | None]]:
        """The sequences that need not wait any longer, with the error of those whose constraint
        cannot be compiled.
        """
        settled: list[tuple[Key, Failure | None]] = []
        for constraint, compiled in self.compiler.take():
            for key, seq in list(self._compiling.items()):
                assert seq.request.constraint is not None
                if key_of(seq.request.constraint) != constraint:
                    continue
                del self._compiling[key]
                if compiled.error is None:
                    seq.attach(compiled)
                settled.append((key, compiled.error))
        return settled

    def end(self, keys: Iterable[Key]) -> None:
        """Forget sequences that have ended; others are ignored."""
        for key in keys:
            seq = self._sequences.pop(key, None)
            self._compiling.pop(key, None)
            if seq is not None and self._by_slot[seq.slot] is seq:
                self._leave(seq.slot)

    def _leave(self, slot: int) -> None:
        self._by_slot[slot], self._in_slot[slot] = None, False

    # --- a step ---------------------------------------------------------------------------------

    def plan(self, plan: StepPlan) -> None:
        """Follow sequences into and out of slots, and write the plan's `masked_logits`."""
        for slot in plan.freed_slots.tolist():
            self._leave(slot)
        if plan.new_rows:
            self._enter(plan)
        rows = np.flatnonzero(self._in_slot[plan.slots] & (plan.num_sampled > 0))
        slots = plan.slots[rows].tolist()
        self._rows = rows
        self._row_sequences = [seq for slot in slots if (seq := self._by_slot[slot]) is not None]
        if not len(plan.draft_ids):
            started = np.array([seq.started for seq in self._row_sequences], np.bool_)
            rows = rows[started]
        counts = plan.num_sampled[rows]
        ends = np.cumsum(plan.num_logits, dtype=np.int32)[rows]
        plan.masked_logits = ragged_positions(counts, ends - counts)

    def _enter(self, plan: StepPlan) -> None:
        clients = dict(zip(plan.handles.tolist(), plan.clients.tolist(), strict=True))
        for row in plan.new_rows:
            seq = self._sequences.get((clients[row.handle], row.handle))
            if seq is None:
                continue
            seq.slot = row.slot
            self._by_slot[row.slot], self._in_slot[row.slot] = seq, True
            # An engine that takes over a request has its output still to see.
            seq.see(row.token_ids[row.num_prompt + seq.num_seen :].tolist())

    def masks(self, plan: StepPlan) -> MaskRows | None:
        """The masks of `plan.masked_logits`; valid until the next call."""
        total = len(plan.masked_logits)
        if not total:
            return None
        begin = perf_counter()
        if total > len(self._masks):
            self._masks = np.empty((2 * total, self._masks.shape[1]), np.uint64)
        masks = self._masks[:total]
        if len(plan.draft_ids):
            self._fill_with_drafts(plan, masks)
        else:
            started = [seq for seq in self._row_sequences if seq.started]
            self._fill(started, masks)
        self._counters.masks += total
        self._counters.mask_seconds += perf_counter() - begin
        return masks

    @staticmethod
    def _fill(sequences: list[ConstrainedSequence], masks: MaskRows) -> None:
        """One mask each, in order."""
        backends = {seq.backend for seq in sequences}
        for backend in backends:
            assert backend is not None
            rows = [i for i, seq in enumerate(sequences) if seq.backend is backend]
            backend.fill([sequences[i].matcher for i in rows], rows, masks)

    def _fill_with_drafts(self, plan: StepPlan, masks: MaskRows) -> None:
        """For each row a mask for its next token, and one for what would follow each draft. Behind
        a draft that is not allowed, nothing is sampled that counts.
        """
        masks[:] = EVERY_TOKEN
        num_drafts = plan.num_drafts
        starts = np.cumsum(num_drafts) - num_drafts
        first = 0
        for row, seq in zip(self._rows.tolist(), self._row_sequences, strict=True):
            backend, matcher = seq.backend, seq.matcher
            assert backend is not None
            assert matcher is not None
            drafts = plan.draft_ids[starts[row] : starts[row] + num_drafts[row]].tolist()
            free = seq.free_tokens(drafts)
            if free is not None:
                bound = drafts[free:]
                allowed = matcher.accepted(bound)
                for i in range(allowed + 1):
                    backend.fill([matcher], [first + free + i], masks)
                    if i < allowed:
                        matcher.advance(bound[i : i + 1])
                matcher.rollback(allowed)
            first += len(drafts) + 1

    def advance(self, plan: StepPlan, result: StepResult, table: RequestTable) -> None:
        """Take note of the tokens that were sampled, and add those that follow for certain.

        A sequence whose state cannot go on fails alone.

        Args:
            table: as it was before the step.
        """
        if not self._row_sequences:
            return
        begin = perf_counter()
        counts = result.num_sampled[self._rows]
        ends = np.cumsum(result.num_sampled)[self._rows]
        slots = plan.slots[self._rows].tolist()
        forced: list[list[int]] = []
        going_on: dict[int, ConstrainedSequence] = {}
        rows = self._rows.tolist()
        for row, seq, slot, end, count in zip(
            rows, self._row_sequences, slots, ends.tolist(), counts.tolist(), strict=True
        ):
            token_ids = result.token_ids[end - count : end].tolist()
            forced.append([])
            if not token_ids:
                continue
            error = seq.see(token_ids)
            if error is not None:
                result.errors[slot] = seq.failure(error)
            elif seq.may_go_on(token_ids):
                if seq.jumps and seq.started:
                    limit = min(seq.request.max_total_tokens, table.max_len)
                    forced[-1] = seq.forced_tokens(limit - int(table.num_tokens[slot]) - count)
                if not forced[-1]:
                    going_on[row] = seq
        if any(forced):
            self._append(result, ends, forced)
        if len(result.drafts_indptr):
            review_drafts(result, going_on)
        self._counters.advance_seconds += perf_counter() - begin

    def _append(
        self, result: StepResult, ends: NDArray[np.integer], forced: list[list[int]]
    ) -> None:
        """Add forced tokens to the rows that end at `ends` in the result's tokens."""
        lengths = np.array([len(ids) for ids in forced], np.int32)
        ids = np.fromiter(itertools.chain.from_iterable(forced), np.int32)
        result.token_ids = np.insert(result.token_ids, np.repeat(ends, lengths), ids)
        result.num_forced = np.zeros_like(result.num_sampled)
        result.num_forced[self._rows] = lengths
        result.num_sampled = result.num_sampled + result.num_forced
        self._counters.forced_tokens += len(ids)


def _key(request: Request) -> Key:
    return request.client_index, request.handle
