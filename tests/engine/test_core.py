"""The step: order of its parts, outputs per client, trace, loopback, configuration."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from galley.config import EngineConfig, SchedulerConfig
from galley.engine.build import build_core
from galley.engine.core import EngineCore
from galley.engine.heartbeat import StatusFile, StatusReader
from galley.engine.observers import RowRecorder, StepObserver, WorkloadMeter
from galley.engine.outputs import EngineId
from galley.errors import ConfigError
from galley.messages import Outputs
from galley.observability.meter import Sizes, Workload
from galley.request import FinishReason
from tests.scheduler.fakes import (
    Collected,
    FakeExecutor,
    assert_all_free,
    expected,
    make_core,
    request,
    run,
    step,
)


def test_the_order_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_core()
    order: list[str] = []

    def noted(name: str, function):
        def call(*args):
            order.append(name)
            return function(*args)

        return call

    scheduler, executor = core.scheduler, core.executor
    monkeypatch.setattr(scheduler, "schedule", noted("schedule", scheduler.schedule))
    monkeypatch.setattr(scheduler, "commit", noted("commit", scheduler.commit))
    monkeypatch.setattr(executor, "submit", noted("submit", executor.submit))
    monkeypatch.setattr(executor, "sample", noted("sample", executor.sample))
    core.while_waiting = noted("while_waiting", lambda: None)

    class Observer(StepObserver):
        def __init__(self, name: str) -> None:
            self.name = name

        def planned(self, plan, table) -> None:
            order.append(f"planned {self.name}")

        def committed(self) -> None:
            order.append(f"committed {self.name}")

    core.observers += [Observer("a"), Observer("b")]
    core.add([request(1, [1, 2])])
    core.step()
    # fmt: off
    assert order == [
        "schedule", "planned a", "planned b", "submit", "while_waiting", "sample", "commit",
        "committed a", "committed b",
    ]
    # fmt: on


def test_two_observers_at_once(tmp_path: Path) -> None:
    """The status file gets the rows of each step, the workload meter their work."""
    core = make_core()
    path = str(tmp_path / "status")
    sizes = Sizes(1000, 500, 8, 3000, 64)
    core.observers.append(RowRecorder(StatusFile(path, 8)))
    core.observers.append(WorkloadMeter(Workload(sizes, core.counters)))
    core.add(request(h, [1, 2], max_tokens=3) for h in (70, 2**40))
    core.step()
    assert StatusReader(path).rows() == [(70, 2), (2**40, 2)]
    assert core.counters.write_bytes == 4 * 64
    core.step()
    assert StatusReader(path).rows() == [(70, 3), (2**40, 3)]
    assert core.counters.write_bytes == 6 * 64


def test_an_idle_core_yields_nothing() -> None:
    core = make_core()
    assert not core.has_work
    assert core.step() == []


def test_outputs_are_one_message_of_columns() -> None:
    core = make_core()
    core.engine_id = EngineId(engine_index=2, epoch=5)
    core.add(request(h, [h] * 3, max_tokens=5) for h in (1, 2, 3))
    core.step()
    ((client, out),) = core.step()
    assert client == 0
    assert isinstance(out, Outputs)
    assert (out.step, out.epoch, out.engine_index) == (2, 5, 2)
    assert np.frombuffer(out.handles, np.int64).tolist() == [1, 2, 3]
    assert out.counts == b""
    tokens = np.frombuffer(out.token_ids, np.int32).tolist()
    assert tokens == [expected([h] * 3, 2)[1] for h in (1, 2, 3)]
    assert out.stats.num_running == 3
    assert (out.started, out.finished, out.logprobs) == ([], [], None)


@pytest.mark.parametrize("drafts", ["none", "right", "random"])
def test_each_client_gets_its_own_and_nothing_else(drafts: str) -> None:
    core = make_core(drafts=drafts, budget=20)
    clients = {c: Collected() for c in (0, 1, 2)}
    prompts = {(c, h): [c, h] * (3 + h) for c in clients for h in (1, 2, 3)}
    for (c, h), prompt in prompts.items():
        scored = {"logprobs": 0, "prompt_logprobs": 0} if h == 2 else {}
        core.add([request(h, prompt, max_tokens=9, client_index=c, **scored)])
    core.abort([3], client_index=1)
    while core.has_work:
        for client, out in step(core):
            clients[client].take(out)
    for (c, h), prompt in prompts.items():
        got = clients[c]
        if (c, h) == (1, 3):
            assert got.ends[h].reason == FinishReason.ABORT
            continue
        assert got.tokens[h] == expected(prompt, 9)
        assert got.ends[h].reason == FinishReason.LENGTH
        assert len(got.started[h]) == 1
    for got in clients.values():
        assert got.logprob_positions == {2: list(range(10, 19))}
        assert got.prompt_positions == {2: list(range(1, 10))}
    assert_all_free(core)


def test_a_client_with_only_a_prompt_chunk_in_the_step_gets_the_gauges() -> None:
    core = make_core(budget=16)
    core.add([request(1, [1] * 100)])
    ((_, out),) = core.step()
    assert (out.handles, out.token_ids) == (b"", b"")
    assert out.stats.num_running == 1
    assert out.started[0].handle == 1


def test_loopback_through_bytes_gives_the_same() -> None:
    """`step` compares the worker's table with the scheduler's after every step."""
    outputs = []
    for loopback in (False, True):
        core = make_core(loopback=loopback, num_blocks=1 + 17, budget=30)
        core.add(
            request(h, [h % 2, *range(30 + h)], max_tokens=50, logprobs=0, stop_token_ids=[5, 9])
            for h in range(1, 12)
        )
        got = run(core)
        assert core.scheduler.counters.num_preemptions > 0
        assert core.counters.prefix_hits > 0
        assert any(len(p.slots) >= 2 for p in core.executor.plans)
        outputs.append((got.tokens, got.logprob_positions))
    assert outputs[0] == outputs[1]


def test_the_trace_records_each_step() -> None:
    core = make_core(budget=40)
    core.add([request(1, list(range(50)), max_tokens=3), request(2, [2] * 10, max_tokens=3)])
    run(core)
    records = core.trace.since(0)
    assert records["step"].tolist() == [1, 2, 3, 4]
    assert records["num_tokens"].tolist() == [40, 20, 2, 2]
    assert records["num_decodes"].tolist() == [0, 0, 2, 2]
    assert records["started"].tolist() == [1, 1, 0, 0]
    assert records["ended"].tolist() == [0, 0, 0, 2]
    assert records["num_running"].tolist() == [1, 2, 2, 0]
    assert records["blocks_taken"].tolist() == [3, 2, 0, 0]
    assert records["blocks_released"].tolist() == [0, 0, 0, 5]
    assert records["blocks_free"].tolist() == [60, 58, 58, 63]
    for a, b in (("begin", "submit"), ("submit", "sampled"), ("sampled", "end")):
        assert (records[a] <= records[b]).all()
    assert core.trace.rows_of(2).num_new.tolist() == [10, 10]


def test_steps_are_logged_where_asked(caplog: pytest.LogCaptureFixture) -> None:
    core = make_core()
    core.recorder.logs = True
    core.add([request(1, [3] * 5, max_tokens=2)])
    with caplog.at_level(logging.INFO):
        core.step()
        core.step()
    words = [message.partition(", iteration")[0] for message in caplog.messages]
    assert words == [
        "Iteration(1): 1 context requests, 5 context tokens, 0 generation requests, 0 generation "
        "tokens",
        "Iteration(2): 0 context requests, 0 context tokens, 1 generation requests, 1 generation "
        "tokens",
    ]


def test_shutdown_reaches_the_executor() -> None:
    core = make_core()
    core.shutdown()
    assert core.executor.calls == [("shutdown", ())]


def test_build_takes_its_limits_from_config_and_executor() -> None:
    config = EngineConfig(
        scheduler=SchedulerConfig(
            max_num_batched_tokens=77,
            max_num_seqs=8,
            long_prefill_token_threshold=9,
            mixed_prefill_tokens=5,
        )
    )
    core = build_core(config, FakeExecutor(max_model_len=123))
    limits = core.scheduler.limits
    assert isinstance(core, EngineCore)
    assert (limits.max_num_batched_tokens, limits.max_num_seqs, limits.max_model_len) == (
        77,
        8,
        123,
    )
    assert (limits.long_prefill_token_threshold, limits.mixed_prefill_tokens) == (9, 5)
    assert core.scheduler.table.token_ids.shape == (8, 123)


def test_build_refuses_a_pool_too_small_for_one_sequence() -> None:
    config = EngineConfig(scheduler=SchedulerConfig(max_num_batched_tokens=64, max_num_seqs=8))
    with pytest.raises(ConfigError, match="--max-model-len") as error:
        build_core(config, FakeExecutor(num_blocks=16, max_model_len=256))
    assert "15 blocks" in str(error.value)
    assert "--kv-cache-memory-bytes" in str(error.value)
