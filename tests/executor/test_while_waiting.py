"""The engine core's `while_waiting`, over the executor that serves on a CPU."""

from __future__ import annotations

import numpy as np
import pytest

from galley.engine.build import build_core
from galley.executor.local import LocalExecutor
from galley.request import FinishReason, Request, SamplingParams
from tests.models.checkpoints import CASES, StateDict, make
from tests.runner.models import configure, open_runner

FLAGS = {"num_threads": 1, "max_model_len": 128}


def request(handle: int, seed: int = 0) -> Request:
    prompt = np.random.default_rng(seed).integers(0, 100, 9).astype(np.int32)
    return Request(
        handle=handle,
        request_id=str(handle),
        prompt_token_ids=prompt.tobytes(),
        params=SamplingParams(max_tokens=6, temperature=0.0),
        max_total_tokens=15,
    )


@pytest.fixture(scope="module")
def checkpoint():
    return StateDict(make(CASES["llama-mha"]))


@pytest.fixture
def core(checkpoint):
    runner = open_runner(checkpoint, **FLAGS)
    return build_core(configure(checkpoint.model_info, **FLAGS), LocalExecutor(runner))


class Client:
    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, FinishReason] = {}

    def step(self, core) -> None:
        for _, out in core.step():
            handles = np.frombuffer(out.handles, np.int64).tolist()
            ids = np.frombuffer(out.token_ids, np.int32).tolist()
            for handle, token in zip(handles, ids, strict=True):
                self.tokens.setdefault(handle, []).append(token)
            self.ends.update({e.handle: FinishReason(e.reason) for e in out.finished})

    def run(self, core) -> Client:
        while core.has_work:
            self.step(core)
        return self


def test_the_step_is_computed_when_it_is_called(core) -> None:
    """On a CPU nothing is left for `sample` to compute."""
    client, seen = Client(), []
    core.add([request(1)])
    core.while_waiting = lambda: seen.append(core.executor._runner._executable.samples.token_ids[0])
    client.run(core)
    assert seen == client.tokens[1]


def test_an_arrival_is_in_the_next_step(core) -> None:
    client = Client()
    core.add([request(1)])
    core.while_waiting = lambda: core.add([request(2)])
    client.step(core)
    core.while_waiting = None
    assert (core.scheduler.num_running, core.scheduler.num_waiting) == (1, 1)
    client.step(core)
    assert core.scheduler.num_running == 2
    client.run(core)
    assert client.tokens[1] == client.tokens[2]


def test_an_abort_drops_the_tokens_of_this_step_alone(core) -> None:
    plain = Client()
    core.add([request(1), request(2, seed=5)])
    plain.run(core)
    client = Client()
    core.add([request(1), request(2, seed=5)])
    client.step(core)
    core.while_waiting = lambda: core.abort([1])
    client.step(core)
    core.while_waiting = None
    assert client.ends == {1: FinishReason.ABORT}
    client.run(core)
    assert client.tokens == {1: plain.tokens[1][:1], 2: plain.tokens[2]}
    assert core.scheduler.kv.pool.num_used == 0
