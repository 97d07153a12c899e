"""Runs a case twice, each request alone and all of them together, and compares to the last bit.

python -m tests.fuzz.run [--minutes 60] [--seed 0]      seeds from there on; prints what differs
"""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from collections import Counter
from typing import Any

import msgspec

from galley.engine.block_index import BlockIndex
from galley.engine.build import build_core
from galley.engine.core import EngineCore
from galley.engine.persistent_kv import KVFiles
from galley.executor.local import LocalExecutor
from galley.executor.loopback import LoopbackExecutor
from galley.frontend.client import InprocClient
from galley.frontend.input_processor import InputProcessor, limits_of
from galley.frontend.output_processor import OutputProcessor, RequestState, Sequence
from galley.request import Request, RequestOutputKind
from galley.runner.runner import Runner
from galley.spec.speculator import make_speculator
from tests.fuzz.cases import MACHINE, Ask, Case, draw

#: Steps after which a workload must be over: each token of each request in a step of its own, and
#: as much again for what preemption computes twice.
PATIENCE = 30_000
#: Steps after which the engine's accounting is checked: what is wrong there stays wrong.
CHECKED = 4


#: Flags that may change an answer, or whether a request is accepted; no other may.
SAME = ("dtype", "quantized_activations", "scheduling_policy")


class Killed(Exception):
    """The engine dies here."""


class Engine:
    """A core over a case's model, and what happens to it."""

    def __init__(self, case: Case, flags: dict[str, Any]) -> None:
        self.case = case
        self.config = case.config(**flags)
        self.files = KVFiles.make()
        self.client = InprocClient(
            self.make_core(),
            InputProcessor(limits_of(self.config, case.checkpoint.model_info), None),
            OutputProcessor(None),
        )
        self.events: Counter[str] = Counter()

    def make_core(self) -> EngineCore:
        index = None
        if self.files is not None and self.config.cache.enable_prefix_caching:
            index = BlockIndex(self.files, b"f" * 32)
        checkpoint = self.case.checkpoint
        memory = None if index is None else index.memory
        runner = Runner(
            self.config,
            checkpoint.model_info,
            checkpoint,
            MACHINE.available_memory,
            kv_memory=memory,
            speculator=make_speculator(
                self.config, checkpoint.model_info, MACHINE.available_memory
            ),
        )
        loopback = self.config.parallel.distributed_executor_backend == "loopback"
        executor = LoopbackExecutor(runner) if loopback else LocalExecutor(runner)
        return build_core(self.config, executor, block_index=index)

    def close(self) -> Counter[str]:
        """Its events."""
        assert isinstance(self.client.core, EngineCore)
        self.client.core.check_integrity()
        self._note(self.client.core)
        if self.files is not None:
            self.files.close()
        return self.events

    def add(self, ask: Ask, name: str) -> RequestState:
        params = msgspec.structs.replace(ask.params, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt: dict[str, Any] = {"prompt_token_ids": ask.prompt}
        if ask.salt:
            prompt["cache_salt"] = ask.salt
        return self.client.add(prompt, params, name, priority=ask.priority)

    def squeeze(self, share: float) -> None:
        """There is no memory for this share of the KV cache."""
        core = self.client.core
        assert isinstance(core, EngineCore)
        given_back = core.scheduler.set_reserved_blocks(int(share * core.executor.num_blocks))
        core.executor.rpc("release_blocks", given_back)
        self.events["given back"] += len(given_back)

    def step(self, death: str | None = None) -> None:
        """One step, in which the engine may die before or after the forward pass."""
        core = self.client.core
        assert isinstance(core, EngineCore)
        if death:
            submit = core.executor.submit

            def die(plan: Any) -> Any:
                if death == "after":
                    submit(plan)
                raise Killed

            core.executor.submit = die  # type: ignore[method-assign]
        try:
            self.client.step()
            if core.scheduler.step % CHECKED == 0:
                core.check_integrity()
        except Killed:
            self._note(core)
            self.events["deaths"] += 1
            self.client.core = fresh = self.make_core()
            self.events["kept blocks"] += len(fresh.scheduler.kv.pool.index)
            self.client.core.add(self._replayed())

    def _note(self, core: EngineCore) -> None:
        scheduler = core.scheduler
        self.events["preemptions"] += scheduler.counters.num_preemptions
        self.events["cached tokens"] += scheduler.kv.counters.prefix_hits
        self.events["evictions"] += scheduler.kv.pool.num_evicted
        self.events["steps"] += scheduler.step
        if (drafts := self.config.speculative.settings) is not None:
            counts = scheduler.draft_counts
            self.events[f"accepted {drafts.method}"] += counts.num_accepted
            self.events[f"rejected {drafts.method}"] += counts.num_rejected

    def _replayed(self) -> list[Request]:
        """As the client of a server would send them to the next engine."""

        def again(sequence: Sequence) -> Request:
            tokens = array("i", sequence.token_ids).tobytes()
            return msgspec.structs.replace(sequence.request, output_token_ids=tokens)

        return [again(s) for s in self.client.outputs.sequences.values()]


def run_alone(case: Case, picks: list[int] | None = None) -> list[Any]:
    """Each request, or each of `picks`, in an engine that has nothing else to do and remembers
    nothing.
    """
    flags = {name: case.flags[name] for name in SAME}
    flags |= {"enable_prefix_caching": False, "num_threads": 1, "num_gpu_blocks_override": 40}
    engine = Engine(case, flags)
    answers = []
    for i in range(len(case.asks)) if picks is None else picks:
        state = engine.add(case.asks[i], "alone")
        while not state.ended:
            engine.step()
        answers.append(answer(state))
    engine.close()
    return answers


def run_together(case: Case) -> tuple[list[Any], Counter[str]]:
    """All of them as the case says: their answers, and what happened. A decoy that was aborted has
    no answer (None).
    """
    engine = Engine(case, case.flags)
    states: list[RequestState | None] = [None] * len(case.asks)
    left: set[int] = set()
    step = 0
    while any(s is None or not s.ended for s in states):
        for i, ask in enumerate(case.asks):
            if ask.at == step:
                states[i] = engine.add(ask, str(i))
            state = states[i]
            if ask.leave is not None and step == ask.at + ask.leave and state and not state.ended:
                engine.client.cancel(state)
                left.add(i)
        if step in case.resets:
            engine.client.core.reset_prefix_cache(True)  # type: ignore[attr-defined]
        if step in case.squeezes:
            engine.squeeze(case.squeezes[step])
        engine.step(case.deaths.get(step))
        step += 1
        assert step < PATIENCE, "it does not end"
    core = engine.client.core
    assert core.reset_prefix_cache(), "blocks are in use at the end"  # type: ignore[attr-defined]
    answers = [None if i in left else answer(s) for i, s in enumerate(states) if s is not None]
    return answers, engine.close()


def answer(state: RequestState) -> Any:
    output = state.take()
    assert output is not None
    return (
        logprobs(output.prompt_logprobs),
        [
            (o.index, o.token_ids, logprobs(o.logprobs), o.finish_reason, o.stop_reason)
            for o in output.outputs
        ],
    )


def logprobs(columns: Any) -> Any:
    if columns is None:
        return None
    return [None if c is None else {k: (v.logprob, v.rank) for k, v in c.items()} for c in columns]


def differences(seed: int) -> tuple[list[str], Counter[str]]:
    """The answers of a case that differ in a batch, and the events of its engine."""
    case = draw(seed)
    found = []
    together, events = run_together(case)
    for i, (alone, among) in enumerate(zip(run_alone(case), together, strict=True)):
        if among is not None and among != alone:
            found.append(f"seed {seed}, request {i} of {case}:\n  {alone}\n  {among}")
    return found, events


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    end, seed, failed = time.monotonic() + 60 * options.minutes, options.seed, []
    events: Counter[str] = Counter()
    while time.monotonic() < end:
        try:
            found, happened = differences(seed)
            events += happened
        except Exception as e:
            found = [f"seed {seed}: {type(e).__name__}: {e}"]
        if found:
            failed.append(seed)
            print(found[0][:3000], flush=True)
        seed += 1
    print(f"{seed - options.seed} cases, {dict(events)}, failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
