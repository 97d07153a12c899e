"""Executors on the default model: the same tokens and logprobs whatever the chunks and mates."""

from __future__ import annotations

import numpy as np
import pytest

from galley.config import EngineConfig, ParallelConfig
from galley.errors import ConfigError
from galley.executor import build
from galley.request import SamplingParams
from tests.executor.toy import Toy
from tests.runner.models import MACHINE, configure, default_checkpoint, open_runner

MAX_LEN = 256
KINDS = {"local": "uni", "loopback": "loopback"}


@pytest.fixture(scope="module")
def checkpoint():
    return default_checkpoint()


@pytest.fixture(scope="module")
def executors(checkpoint):
    made = {
        name: build(
            configure(
                checkpoint.model_info,
                max_model_len=MAX_LEN,
                kv_cache_memory_bytes=64 * 2**20,
                distributed_executor_backend=kind,
            ),
            checkpoint.model_info,
            checkpoint,
            MACHINE.available_memory,
        )
        for name, kind in KINDS.items()
    }
    yield made
    for executor in made.values():
        executor.shutdown()


@pytest.fixture
def toy(executors):
    executors["local"].rpc("reset")
    return Toy(executors["local"], 8, MAX_LEN)


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(20, 40000, length).tolist()


def params(seed: int) -> SamplingParams:
    return SamplingParams(temperature=0.9, top_p=0.95, seed=seed, logprobs=2, max_tokens=None)


def outcome(sequence, results):
    """Tokens and logprobs of one slot's sequence, of the results of all steps."""
    logprobs = [r.logprobs for r in results if r.logprobs is not None]
    return sequence.output, np.concatenate([x.logprobs for x in logprobs]).tolist()


def test_one_prompt_in_any_chunks(toy):
    ids = prompt(1, 90)
    outcomes = []
    for budget in (2048, 64, 16, 7):
        s = toy.add(0, ids, params(5))
        results = toy.generate([s], 10, budget)
        outcomes.append(outcome(s, results))
        assert len(results) == -(-90 // budget) + 9
        toy.free(s)
    assert all(o == outcomes[0] for o in outcomes)


def test_alone_and_in_a_batch(toy):
    lengths = [5, 33, 64, 17, 90, 1, 48]
    alone = []
    for i, n in enumerate(lengths):
        s = toy.add(i, prompt(i, n), params(i))
        alone.append(outcome(s, toy.generate([s], 8)))
        toy.free(s)
    together = [toy.add(6 - i, prompt(i, n), params(i)) for i, n in enumerate(lengths)]
    steps = toy.generate(together, 8, budget=50)
    assert any(len(r.num_sampled) >= 2 for r in steps)
    for s, (tokens, _) in zip(together, alone, strict=True):
        assert s.output == tokens

    for s in together:
        toy.free(s)
    again = [toy.add(i, prompt(i, n), params(i)) for i, n in enumerate(lengths)]
    logprobs: dict[int, list[float]] = {s.slot: [] for s in again}
    while any(len(s.output) < 8 for s in again):
        rows = [(s, len(s.tokens) - s.computed) for s in again if len(s.output) < 8]
        columns = toy.run(rows).logprobs
        for row, start, stop in zip(
            columns.rows, columns.indptr[:-1], columns.indptr[1:], strict=True
        ):
            logprobs[rows[row][0].slot] += columns.logprobs[start:stop].tolist()
    assert [logprobs[i] for i in range(len(lengths))] == [want for _, want in alone]


def test_loopback_equals_local(executors):
    def run(executor):
        executor.rpc("reset")
        toy = Toy(executor, 8, MAX_LEN)
        sequences = [
            toy.add(0, prompt(1, 40), params(1)),
            toy.add(1, prompt(2, 21), SamplingParams(temperature=0.0, prompt_logprobs=2)),
            toy.add(
                2,
                prompt(3, 30),
                SamplingParams(
                    temperature=1.0,
                    seed=4,
                    min_tokens=3,
                    stop_token_ids=[30],
                    logit_bias={500: 9.0},
                    frequency_penalty=1.0,
                ),
                bad_words=[[501, 502]],
            ),
            toy.add(3, prompt(4, 9), SamplingParams(temperature=0.0, allowed_token_ids=[7, 8, 99])),
        ]
        results = toy.generate(sequences, 10, budget=32)
        return [s.output for s in sequences], results

    (ours, local), (theirs, loopback) = (run(executors[name]) for name in KINDS)
    assert ours == theirs
    for a, b in zip(local, loopback, strict=True):
        assert a.num_sampled.tolist() == b.num_sampled.tolist()
        assert a.token_ids.tolist() == b.token_ids.tolist()
        for name in ("logprobs", "prompt_logprobs"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None)
            if x is not None:
                for column in ("rows", "positions", "ranks", "indptr", "token_ids", "logprobs"):
                    assert np.array_equal(getattr(x, column), getattr(y, column))
    assert any(r.prompt_logprobs is not None for r in loopback)


def test_loopback_shares_no_array(executors):
    executor = executors["loopback"]
    executor.rpc("reset")
    toy = Toy(executor, 8, MAX_LEN)
    s = toy.add(0, prompt(7, 20))
    plan = toy.plan([(s, 20)])
    handle = executor.submit(plan)
    plan.slots[:] = 5
    plan.new_rows[0].token_ids[:] = 0
    first = handle.sample().token_ids.tolist()
    executor.rpc("reset")
    s = toy.add(0, prompt(7, 20))
    toy.run([(s, 20)])
    assert s.output == first


def test_rpc_answers_by_name_and_refuses_what_it_does_not_know(executors):
    for executor in executors.values():
        (memory,) = executor.rpc("memory")
        assert memory["kv_cache"] <= 64 * 2**20
        assert memory["weights"] > 90e6
        assert executor.rpc("profile", True) == [None]
        assert executor.rpc("profile", False) == [None]
        assert "linear" in executor.rpc("describe")[0]
        with pytest.raises(ValueError, match="no worker method 'execute'"):
            executor.rpc("execute", None)


def test_what_the_scheduler_needs_to_know(executors, checkpoint):
    for executor in executors.values():
        (group,) = executor.groups
        assert (group.kind, group.block_size) == ("full", 16)
        assert group.bytes_per_token == 30 * 2 * 3 * 64 * 2
        assert executor.num_blocks == 64 * 2**20 // group.block_bytes
        assert executor.max_model_len == MAX_LEN
        assert executor.batch_invariant


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_more_than_one_rank_is_refused(checkpoint, name):
    config = EngineConfig(parallel=ParallelConfig(**{name: 2}))
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-") + " 2:.*use 1") as error:
        build(config, checkpoint.model_info, checkpoint, MACHINE.available_memory)
    assert error.value.field == name


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_memory_is_touched_as_it_is_used(checkpoint, backend):
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * 4096

    before = resident()
    flags = {"max_model_len": MAX_LEN, "kv_cache_memory_bytes": 4 * 10**9, "backend": backend}
    runner = open_runner(checkpoint, **flags)
    assert runner.memory()["kv_cache"] > 3.9e9
    assert resident() - before < 1e9
