"""An executor without a model, whose tokens prove that the KV cache was kept right.

The "KV" of a position is a 64-bit digest of the tokens up to it, computed from the digest of the
position before, *read through the block table*. A wrong, stale or overwritten block therefore
changes every later token; `expected` computes the same tokens from the prompt alone.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.batch import (
    MIN_LOGIT_ROWS,
    GroupSpec,
    LogprobColumns,
    RequestTable,
    StepPlan,
    StepResult,
    decode_plan,
    decode_result,
    encode_plan,
    encode_result,
)
from galley.config import CacheConfig, EngineConfig, SchedulerConfig
from galley.engine.build import build_core
from galley.engine.core import EngineCore
from galley.messages import Outputs
from galley.request import Failure, Request, SamplingParams

VOCAB = 1000
MASK = (1 << 64) - 1
GARBAGE = 0xDEADBEEF


def mix(digest: int, token: int) -> int:
    return (digest * 6364136223846793005 + (token + 1) * 1442695040888963407 + 97) & MASK


def token_of(digest: int) -> int:
    return (digest >> 33) % VOCAB


def expected(prompt: list[int], num_tokens: int) -> list[int]:
    """The first output tokens that the fake model gives for a prompt."""
    digest = 0
    for token in prompt:
        digest = mix(digest, token)
    out: list[int] = []
    for _ in range(num_tokens):
        out.append(token_of(digest))
        digest = mix(digest, out[-1])
    return out


class _Handle:
    def __init__(self, executor: FakeExecutor, plan: StepPlan) -> None:
        self.executor, self.plan = executor, plan

    def sample(self, mask: Any = None) -> StepResult:
        result = self.executor.sample(self.plan)
        return decode_result(encode_result(result)) if self.executor.loopback else result


class FakeExecutor:
    """Keeps a worker's own table by plans and results alone.

    Args:
        drafts: what is proposed after each token: "none", "right", "wrong" or "random" tokens.
        loopback: plans and results travel as bytes.
    """

    def __init__(
        self,
        num_blocks: int = 64,
        max_model_len: int = 256,
        max_num_seqs: int = 8,
        block_size: int = 16,
        groups: list[GroupSpec] | None = None,
        drafts: str = "none",
        loopback: bool = False,
    ) -> None:
        self.groups = groups or [GroupSpec("full", block_size, 64)]
        self.num_blocks = num_blocks
        self.max_model_len = max_model_len
        self.batch_invariant = True
        self.lookahead, self.max_drafts = 0, MIN_LOGIT_ROWS
        self.drafts = drafts
        self.random = random.Random(0)
        self.num_accepted = self.num_rejected = 0
        self.loopback = loopback
        self.table = RequestTable(max_num_seqs, max_model_len, self.groups)
        size = self.groups[0].block_size
        self.kv = np.full((num_blocks, size), GARBAGE, np.uint64)  # of all groups: digest ^ group
        self.truth: list[list[int]] = [[] for _ in range(max_num_seqs)]  # digests by slot
        self.plans: list[StepPlan] = []
        self.scripted: dict[int, list[int]] = {}  # handle -> tokens instead of the model's
        self.failing: dict[int, str] = {}  # handle -> message
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def submit(self, plan: StepPlan) -> _Handle:
        if self.loopback:
            plan = decode_plan(encode_plan(plan))
        self.plans.append(plan)
        self.table.apply_plan(plan)
        for row in plan.new_rows:
            self.truth[row.slot] = []
        return _Handle(self, plan)

    def rpc(self, method: str, *args: Any) -> list[Any]:
        self.calls.append((method, args))
        return [None]

    def shutdown(self) -> None:
        self.rpc("shutdown")

    def sample(self, plan: StepPlan) -> StepResult:
        table = self.table
        counts, tokens = [], []
        errors: dict[int, Failure] = {}
        logprobs, prompt_logprobs = _Entries(), _Entries()
        ids = iter(plan.draft_ids.tolist())
        drafts = [list(itertools.islice(ids, n)) for n in plan.num_drafts.tolist()]
        for row, (slot, num_new, num_sampled) in enumerate(
            zip(plan.slots.tolist(), plan.num_new.tolist(), plan.num_sampled.tolist(), strict=True)
        ):
            start, known = int(table.num_computed[slot]), int(table.num_tokens[slot])
            self.compute(slot, start, start + num_new)
            handle, sampling = int(table.handles[slot]), table.params[slot]
            assert plan.handles[row] == handle
            if sampling.prompt_logprobs is not None:
                for p in range(start + num_new - int(plan.num_logits[row]), start + num_new):
                    if p + 1 < table.num_prompt[slot]:
                        prompt_logprobs.add(row, p + 1, int(table.token_ids[slot, p + 1]))
            if handle in self.failing:
                errors[slot] = Failure(self.failing[handle])
                counts.append(0)
                continue
            if not num_sampled:
                counts.append(0)
                continue
            assert plan.num_logits[row] >= num_sampled == 1 + len(drafts[row])
            assert start + num_new == known + len(drafts[row])
            accepted = self.verify(slot, known, drafts[row])
            if sampling.logprobs is not None:
                for i, token in enumerate(accepted):
                    logprobs.add(row, known + i, token)
            del self.truth[slot][known + len(accepted) - 1 :]
            counts.append(len(accepted))
            tokens.extend(accepted)
        result = StepResult(
            step=plan.step,
            num_sampled=np.array(counts, np.int32),
            token_ids=np.array(tokens, np.int32),
            logprobs=logprobs.columns(),
            prompt_logprobs=prompt_logprobs.columns(),
            errors=errors,
        )
        table.apply_result(plan, result)
        if self.drafts != "none":
            proposed = [
                self.propose(slot) if count else []
                for slot, count in zip(plan.slots.tolist(), counts, strict=True)
            ]
            indptr = np.cumsum([0, *map(len, proposed)])
            result.drafts_indptr = indptr.astype(np.int32)
            result.drafts_ids = np.array([t for ids in proposed for t in ids], np.int32)
        return result

    def verify(self, slot: int, known: int, drafts: list[int]) -> list[int]:
        """The tokens that follow the first `known` ones, as far as the drafts hold."""
        ids = self.table.token_ids[slot]
        assert ids[known : known + len(drafts)].tolist() == drafts
        accepted: list[int] = []
        for i in range(len(drafts) + 1):
            accepted.append(self.token_after(slot, known + i, self.truth[slot][known + i - 1]))
            if i == len(drafts) or accepted[-1] != drafts[i]:
                break
        self.num_accepted += len(accepted) - 1
        self.num_rejected += len(drafts) - len(accepted) + 1
        return accepted

    def token_after(self, slot: int, known: int, digest: int) -> int:
        script = self.scripted.get(int(self.table.handles[slot]), ())
        done = known - int(self.table.num_prompt[slot])
        return script[done] if done < len(script) else token_of(digest)

    def propose(self, slot: int) -> list[int]:
        """Up to 4 drafts: the right tokens, or (by chance, if "random") wrong ones among them."""
        known = int(self.table.num_tokens[slot])
        digest = mix(self.truth[slot][-1], int(self.table.token_ids[slot, known - 1]))
        ids: list[int] = []
        for i in range(self.random.randint(0, 4) if self.drafts == "random" else 4):
            right = self.token_after(slot, known + i, digest)
            wrong = self.drafts == "wrong" or (
                self.drafts == "random" and self.random.random() < 0.3
            )
            ids.append((right + wrong) % VOCAB)
            digest = mix(digest, ids[-1])
        return ids

    def compute(self, slot: int, start: int, end: int) -> int:
        """Write the digests of positions start … end - 1; returns the last.

        What the row reads besides (all before it, or its window) must be what it should be.
        """
        table, digests = self.table, set()
        truth = self.truth[slot]
        for p in range(len(truth), end):
            truth.append(mix(truth[-1] if truth else 0, int(table.token_ids[slot, p])))
        for g, (spec, blocks) in enumerate(zip(self.groups, table.block_tables, strict=True)):
            size = spec.block_size
            if spec.kind == "state":
                digests.add(self.compute_state(g, slot, start, end))
                continue
            assert table.num_blocks[g, slot] * size >= end, "a position has no block"
            first = max(0, start - spec.window + 1) if spec.kind == "window" else 0
            read = np.arange(first, start)
            found = self.kv[blocks[slot, read // size], read % size] ^ np.uint64(g)
            assert found.tolist() == truth[first:start], "a wrong or stale block is read"
            digest = int(found[-1]) if start else 0
            for p in range(start, end):
                digest = mix(digest, int(table.token_ids[slot, p]))
                assert blocks[slot, p // size] != 0, "a position is in the null block"
                self.kv[blocks[slot, p // size], p % size] = digest ^ g
            digests.add(digest)
        assert len(digests) == 1, "groups disagree"
        return digests.pop()

    def compute_state(self, g: int, slot: int, start: int, end: int) -> int:
        """Update a state: all of its blocks hold the digest of the last position."""
        table, spec = self.table, self.groups[g]
        interval = spec.interval or table.max_len

        def blocks_at(position: int) -> NDArray[np.intp]:
            first = position // interval * spec.width
            blocks = table.block_tables[g, slot, first : first + spec.width].astype(np.intp)
            assert blocks.all(), "a position's state is in the null block"
            return blocks

        digest = 0
        if start:
            found = set((self.kv[blocks_at(start - 1), 0] ^ np.uint64(g)).tolist())
            assert found == {self.truth[slot][start - 1]}, "a wrong or stale state is read"
            digest = found.pop()
        for p in range(start, end):
            digest = mix(digest, int(table.token_ids[slot, p]))
            self.kv[blocks_at(p), 0] = digest ^ g
        return digest


class _Entries:
    def __init__(self) -> None:
        self.rows: list[int] = []
        self.positions: list[int] = []
        self.tokens: list[int] = []

    def add(self, row: int, position: int, token: int) -> None:
        self.rows.append(row)
        self.positions.append(position)
        self.tokens.append(token)

    def columns(self) -> LogprobColumns | None:
        if not self.rows:
            return None
        n = len(self.rows)
        return LogprobColumns(
            rows=np.array(self.rows, np.int32),
            positions=np.array(self.positions, np.int32),
            ranks=np.ones(n, np.int32),
            indptr=np.arange(n + 1, dtype=np.int32),
            token_ids=np.array(self.tokens, np.int32),
            logprobs=np.zeros(n, np.float32),
        )


def request(
    handle: int,
    prompt: list[int],
    max_tokens: int = 4,
    output: list[int] | None = None,
    eos: list[int] | None = None,
    priority: int = 0,
    share_group: int = 0,
    cache_salt: str | None = None,
    adapter: int = 0,
    client: str = "",
    client_index: int = 0,
    **sampling: Any,
) -> Request:
    """A request for the fake model; `sampling` goes to SamplingParams."""
    return Request(
        handle=handle,
        request_id=f"r{handle}",
        prompt_token_ids=np.array(prompt, np.int32).tobytes(),
        output_token_ids=np.array(output or [], np.int32).tobytes(),
        params=SamplingParams(max_tokens=max_tokens, seed=0, **sampling),
        max_total_tokens=len(prompt) + max_tokens,
        eos_token_ids=eos or [],
        priority=priority,
        share_group=share_group,
        cache_salt=cache_salt,
        adapter=adapter,
        client=client,
        client_index=client_index,
    )


def make_core(
    budget: int = 64,
    max_num_seqs: int = 8,
    max_model_len: int = 256,
    num_blocks: int = 64,
    block_size: int = 16,
    prefix_caching: bool = True,
    chunked: bool = True,
    policy: str = "fcfs",
    threshold: int = 0,
    adaptive: bool = False,
    mixed: int = 0,
    target_itl: float = 0,
    fairness_by: str = "none",
    groups: list[GroupSpec] | None = None,
    drafts: str = "none",
    loopback: bool = False,
) -> EngineCore:
    """An engine core as `build` wires it, over a fake executor (`core.executor`)."""
    executor = FakeExecutor(
        num_blocks, max_model_len, max_num_seqs, block_size, groups, drafts, loopback
    )
    config = EngineConfig(
        cache=CacheConfig(block_size=block_size, enable_prefix_caching=prefix_caching),
        scheduler=SchedulerConfig(
            max_num_batched_tokens=budget,
            max_num_seqs=max_num_seqs,
            enable_chunked_prefill=chunked,
            scheduling_policy=policy,
            long_prefill_token_threshold=threshold,
            long_prefill_token_threshold_adaptive=adaptive,
            mixed_prefill_tokens=mixed,
            target_itl=target_itl,
            fairness_by=fairness_by,
        ),
    )
    return build_core(config, executor)


class Collected:
    """Tokens, ends and events that a client has received, by handle."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, Any] = {}
        self.started: dict[int, list[Any]] = {}
        self.logprob_positions: dict[int, list[int]] = {}
        self.prompt_positions: dict[int, list[int]] = {}

    def take(self, out: Outputs) -> None:
        handles = np.frombuffer(out.handles, np.int64).tolist()
        counts = np.frombuffer(out.counts, np.int32).tolist() or [1] * len(handles)
        tokens = np.frombuffer(out.token_ids, np.int32).tolist()
        assert sum(counts) == len(tokens)
        for handle, count in zip(handles, counts, strict=True):
            assert handle not in self.ends, "a token after the end"
            self.tokens.setdefault(handle, []).extend(tokens[:count])
            del tokens[:count]
        for columns, into in (
            (out.logprobs, self.logprob_positions),
            (out.prompt_logprobs, self.prompt_positions),
        ):
            if columns is not None:
                owners = np.frombuffer(columns.handles, np.int64).tolist()
                positions = np.frombuffer(columns.positions, np.int32).tolist()
                for handle, position in zip(owners, positions, strict=True):
                    into.setdefault(handle, []).append(position)
        for start in out.started:
            self.started.setdefault(start.handle, []).append(start)
        for end in out.finished:
            assert end.handle not in self.ends, "a second end"
            self.ends[end.handle] = end


def step(core: EngineCore, into: Collected | None = None) -> list[tuple[int, Outputs]]:
    """One step with all invariants checked after it."""
    outputs = core.step()
    core.check_integrity()
    check_equal_tables(core)
    for _, out in outputs:
        if into is not None:
            into.take(out)
    return outputs


def run(core: EngineCore, into: Collected | None = None, max_steps: int = 5000) -> Collected:
    """Step until nothing is left to do."""
    into = into or Collected()
    for _ in range(max_steps):
        if not core.has_work:
            return into
        step(core, into)
    raise AssertionError(f"not finished after {max_steps} steps")


def check_equal_tables(core: EngineCore) -> None:
    """The worker's table equals the scheduler's in every running slot."""
    ours, theirs = core.scheduler.table, core.executor.table
    for slot in core.scheduler.running.order.tolist():
        n = ours.num_tokens[slot]
        assert theirs.num_tokens[slot] == n
        assert theirs.num_computed[slot] == ours.num_computed[slot]
        assert theirs.num_prompt[slot] == ours.num_prompt[slot]
        assert theirs.handles[slot] == ours.handles[slot]
        assert (theirs.token_ids[slot, :n] == ours.token_ids[slot, :n]).all()
        assert (theirs.num_blocks[:, slot] == ours.num_blocks[:, slot]).all()
        for g, table in enumerate(ours.block_tables):
            held = ours.num_blocks[g, slot]
            assert (theirs.block_tables[g][slot, :held] == table[slot, :held]).all()


def assert_all_free(core: EngineCore) -> None:
    """No block is used and no state of any request is left."""
    scheduler = core.scheduler
    scheduler.check_integrity()
    assert scheduler.kv.pool.num_used == 0
    assert not scheduler.has_work
    assert len(scheduler.queue) == 0
    assert len(scheduler.running) == 0
    assert scheduler.table.num_tokens.sum() == 0
    assert all(seq is None for seq in scheduler.running.sequences)
    assert not scheduler.running.scoring
    assert not scheduler.running.watched
