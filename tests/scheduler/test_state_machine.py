"""Random arrivals, aborts, stops, forks, replays and resets over tiny pools.

After every step the invariants of scheduler, pool and tables hold; whatever happened, each
request's tokens are a pure function of its prompt; at the end nothing is left.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from galley.batch import GroupSpec
from galley.engine.core import EngineCore
from galley.kv import make_policies
from galley.kv.capacity import most_held
from galley.request import FinishReason
from tests.scheduler.fakes import (
    Collected,
    assert_all_free,
    expected,
    make_core,
    request,
    step,
)

MAX_LEN = 48
EOS = 11
GROUPS = {
    "full": [GroupSpec("full", 4, 8)],
    "hybrid": [GroupSpec("full", 4, 8), GroupSpec("window", 4, 8, window=10)],
    "windows": [GroupSpec("window", 4, 8, window=w) for w in (10, 10, 3)],
    "state": [GroupSpec("full", 4, 8), GroupSpec("state", 4, 0, other_bytes=32)],
    "states": [
        GroupSpec("full", 4, 8),
        GroupSpec("state", 4, 0, other_bytes=32, interval=8, width=2),
    ],
    "all": [
        GroupSpec("state", 4, 0, other_bytes=32, interval=4),
        GroupSpec("window", 4, 8, window=6),
        GroupSpec("full", 4, 8),
    ],
}
PROMPTS = st.one_of(
    # A few shared prefixes, so that hits, forks and duplicates are common.
    st.builds(
        lambda head, tail: [head] * 9 + tail,
        st.integers(0, 1),
        st.lists(st.integers(0, 2), max_size=12),
    ),
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
)


def blocks_of_one(specs: list[GroupSpec], budget: int) -> int:
    """The smallest pool in which one sequence of MAX_LEN tokens can run."""
    return most_held(make_policies(specs, budget), MAX_LEN)


class Client:
    """One request as its client sees it."""

    def __init__(
        self, handle: int, prompt: list[int], answer: list[int], num_replayed: int
    ) -> None:
        self.handle = handle
        self.prompt = prompt
        self.answer = answer  # all that the request is to produce
        self.num_replayed = num_replayed  # tokens it had before (a replay)


class SchedulerMachine(RuleBasedStateMachine):
    """The clients' view is the model."""

    core: EngineCore

    @initialize(
        budget=st.sampled_from([1, 3, 8, 16, 64]),
        max_num_seqs=st.integers(1, 5),
        spare=st.sampled_from([0, 0, 1, 3, 8, 20]),
        prefix_caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        threshold=st.sampled_from([0, 0, 4]),
        mixed=st.sampled_from([0, 0, 3]),
        target_itl=st.sampled_from([0.0, 0.001, 60.0]),
        chunked=st.booleans(),
        fairness_by=st.sampled_from(["none", "user"]),
        groups=st.sampled_from(["full", "full", *GROUPS]),
        drafts=st.sampled_from(["none", "none", "right", "wrong", "random", "random"]),
        loopback=st.booleans(),
    )
    def start(
        self,
        budget: int,
        max_num_seqs: int,
        spare: int,
        prefix_caching: bool,
        policy: str,
        threshold: int,
        mixed: int,
        target_itl: float,
        chunked: bool,
        fairness_by: str,
        groups: str,
        drafts: str,
        loopback: bool,
    ) -> None:
        specs = GROUPS[groups]
        self.budget = budget if chunked else max(budget, MAX_LEN)
        self.core = make_core(
            budget=self.budget,
            max_num_seqs=max_num_seqs,
            max_model_len=MAX_LEN,
            num_blocks=1 + blocks_of_one(specs, self.budget) + spare,
            block_size=4,
            prefix_caching=prefix_caching,
            policy=policy,
            threshold=threshold,
            mixed=mixed if chunked else 0,
            target_itl=target_itl if chunked else 0,
            chunked=chunked,
            fairness_by=fairness_by,
            groups=specs,
            drafts=drafts if groups not in ("state", "states", "all") else "none",
            loopback=loopback,
        )
        self.got = Collected()
        self.clients: dict[int, Client] = {}
        self.aborted: set[int] = set()
        self.parked: list[int] = []
        self.next_handle = 1
        self.fair = fairness_by != "none"
        self.fcfs = policy == "fcfs" and not self.fair

    def submit(
        self,
        prompt: list[int],
        max_tokens: int,
        replayed: int = 0,
        stops: bool = False,
        parked: str | None = None,
        **kwargs: object,
    ) -> None:
        handle, self.next_handle = self.next_handle, self.next_handle + 1
        answer = expected(prompt, min(max_tokens, MAX_LEN - len(prompt)))
        stop_ids = list(range(0, 1000, 13)) if stops else []
        for i, token in enumerate(answer):
            if token in stop_ids or token == EOS:
                answer = answer[: i + 1]
                break
        replayed = min(replayed, len(answer) - 1)
        self.clients[handle] = Client(handle, prompt, answer, replayed)
        self.core.scheduler.add(
            request(
                handle,
                prompt,
                max_tokens=max_tokens,
                output=answer[:replayed],
                eos=[EOS],
                stop_token_ids=stop_ids,
                **kwargs,
            ),
            parked,
        )
        if parked is not None:
            self.parked.append(handle)

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 30),
        priority=st.integers(-1, 2),
        stops=st.booleans(),
        salt=st.sampled_from([None, None, None, "s"]),
        scored=st.sampled_from([None, None, None, 0]),
        adapter=st.sampled_from([0, 0, 0, 7]),
        parked=st.sampled_from([None, None, None, "grammar", "remote_kv"]),
        client=st.sampled_from(["", "a", "b"]),
    )
    def arrive(
        self,
        prompt: list[int],
        max_tokens: int,
        priority: int,
        stops: bool,
        salt: str | None,
        scored: int | None,
        adapter: int,
        parked: str | None,
        client: str,
    ) -> None:
        self.submit(
            prompt,
            max_tokens,
            client=client,
            stops=stops,
            priority=priority,
            cache_salt=salt,
            prompt_logprobs=scored,
            adapter=adapter,
            parked=parked,
        )

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def unpark(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.parked))
        self.parked.remove(handle)
        self.core.scheduler.unpark(handle)

    @rule(prompt=PROMPTS, children=st.integers(2, 4), max_tokens=st.integers(1, 20))
    def fork(self, prompt: list[int], children: int, max_tokens: int) -> None:
        group = self.next_handle
        for _ in range(children):
            self.submit(prompt, max_tokens, share_group=group)

    @rule(prompt=PROMPTS, max_tokens=st.integers(2, 30), replayed=st.integers(1, 29))
    def replay(self, prompt: list[int], max_tokens: int, replayed: int) -> None:
        self.submit(prompt, max_tokens, replayed=replayed)

    @precondition(lambda self: len(self.clients) > len(self.got.ends))
    @rule(data=st.data(), in_flight=st.booleans())
    def abort(self, data: st.DataObject, in_flight: bool) -> None:
        unfinished = sorted(set(self.clients) - set(self.got.ends))
        handle = data.draw(st.sampled_from(unfinished))
        if not in_flight:
            self.aborted.add(handle)
            self.core.abort([handle])
            return

        def abort_it() -> None:
            self.aborted.add(handle)
            self.core.abort([handle])

        self.core.while_waiting = abort_it
        self.one_step()
        self.core.while_waiting = None

    @rule(running_too=st.booleans())
    def reset(self, running_too: bool) -> None:
        used = self.core.scheduler.kv.pool.num_used
        assert self.core.reset_prefix_cache(running_too) == (running_too or not used)

    @rule(n=st.integers(1, 6))
    def steps(self, n: int) -> None:
        for _ in range(n):
            self.one_step()

    def one_step(self) -> None:
        scheduler, executor = self.core.scheduler, self.core.executor
        parked = set(self.parked) - self.aborted
        reasons = scheduler.waiting_by_reason
        assert sum(n for reason, n in reasons.items() if reason != "capacity") == len(parked)
        assert sum(reasons.values()) == scheduler.num_waiting
        waiting = [seq.request.handle for seq in scheduler.queue]
        plans, preemptions = len(executor.plans), scheduler.counters.num_preemptions
        step(self.core, self.got)
        if len(executor.plans) == plans:
            return
        plan = executor.plans[-1]
        assert 0 < plan.num_new.sum() <= self.budget
        assert len(plan.slots) <= scheduler.limits.max_num_seqs
        assert plan.num_logits.sum() <= scheduler.limits.max_num_logits
        admitted = [row.handle for row in plan.new_rows]
        overtaking = [seq.request.handle for seq in scheduler._overtaking]
        in_order = [handle for handle in admitted if handle not in overtaking]
        others = [handle for handle in waiting if handle not in overtaking or handle in in_order]
        if self.fair and overtaking:  # they count as served, which changes the order
            assert set(in_order) <= set(others)
        else:
            assert in_order == others[: len(in_order)], "admission is strictly in order"
        assert not (admitted and scheduler.counters.num_preemptions > preemptions)
        if self.fcfs and admitted and not overtaking:
            # Overtaking is bounded: none is admitted for the first time while an earlier
            # arrival waits.
            left = set(waiting) - set(admitted)
            for handle in admitted:
                if len(self.got.started[handle]) == 1:
                    assert not any(other < handle for other in left)

    @invariant()
    def answers_are_prefixes_of_what_was_asked(self) -> None:
        if not hasattr(self, "core"):
            return
        self.core.check_integrity()
        for handle, tokens in self.got.tokens.items():
            client = self.clients[handle]
            assert tokens == client.answer[client.num_replayed : client.num_replayed + len(tokens)]

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for handle in self.parked:
            self.core.scheduler.unpark(handle)
        self.parked.clear()
        # Bounded: each step without preemption computes at least one token, and the first
        # sequence of the order is never preempted before it ends.
        for _ in range(4000):
            if not self.core.has_work:
                break
            self.one_step()
        assert_all_free(self.core)
        assert set(self.got.ends) == set(self.clients)
        for handle, client in self.clients.items():
            end = self.got.ends[handle]
            if end.reason == FinishReason.ABORT:
                assert handle in self.aborted
                continue
            assert end.reason in (FinishReason.STOP, FinishReason.LENGTH)
            assert self.got.tokens.get(handle, []) == client.answer[client.num_replayed :]
            starts = self.got.started[handle]
            assert [s.resumed for s in starts] == [False] + [True] * (len(starts) - 1)
            if self.got.prompt_positions.get(handle):
                assert self.got.prompt_positions[handle] == list(range(1, len(client.prompt)))


SchedulerMachine.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=30,
)
TestSchedulerMachine = SchedulerMachine.TestCase
