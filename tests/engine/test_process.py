"""The engine's main loop over a real socket: sessions, requests, calls, and its end."""

from __future__ import annotations

import os
import socket
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from galley.engine import process
from galley.engine.heartbeat import StatusFile, StatusReader, status_file_path
from galley.engine.process import CHECK_EVERY
from galley.messages import Abort, Add, Call, FromEngine, Outputs, Ready, Reply, Stats
from galley.request import FinishReason, Request, SamplingParams
from tests.frontend.engine_thread import BlockingClient, EngineThread
from tests.frontend.scripted import Row, answer

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(FromEngine).decode
PROMPT = [97, 98, 99]
#: More tokens than any test waits for.
ENDLESS = 1_000_000


def request(handle: int, n: int = 5, client: int = 0, epoch: int = 1) -> Request:
    return Request(
        handle=handle,
        request_id=str(handle),
        prompt_token_ids=array("i", PROMPT).tobytes(),
        params=SamplingParams(max_tokens=n),
        max_total_tokens=len(PROMPT) + n,
        client_index=client,
        epoch=epoch,
    )


class Peer:
    """One client of the engine, with an open session."""

    def __init__(self, address: str, client: int = 0) -> None:
        self.connection = BlockingClient(address, client)
        self.ready = self.receive()

    def send(self, message: Any) -> None:
        self.connection.send(encode(message))

    def receive(self) -> Any:
        return decode(self.connection.receive())

    def reply(self) -> Reply:
        """The next reply; passes over outputs."""
        while not isinstance(message := self.receive(), Reply):
            pass
        return message

    def is_disconnected(self) -> bool:
        """Read until the engine closes the connection; False if it stays open."""
        self.send(Call(1, "echo", []))
        try:
            self.reply()
        except EOFError:
            return True
        return False

    def tokens(self, handle: int, n: int) -> list[int]:
        """Receive until `handle` has n tokens."""
        found: list[int] = []
        while len(found) < n:
            message = self.receive()
            handles = memoryview(message.handles).cast("q").tolist()
            ids = memoryview(message.token_ids).cast("i").tolist()
            found += [t for h, t in zip(handles, ids, strict=True) if h == handle]
        return found


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineThread]:
    engine = EngineThread(tmp_path).start()
    yield engine
    if engine.thread.is_alive():
        engine.kill()


def test_a_connection_is_answered_with_ready(engine: EngineThread) -> None:
    for client in (0, 1):
        ready = Peer(engine.address, client).ready
        assert isinstance(ready, Ready)
        assert (ready.epoch, ready.max_model_len) == (1, 1000)


def test_requests_are_computed_and_each_client_gets_its_own(engine: EngineThread) -> None:
    first, second = Peer(engine.address, 0), Peer(engine.address, 1)
    first.send(Add([request(1), request(2)]))
    second.send(Add([request(3, client=1)]))
    expected = answer(PROMPT, 5)
    assert second.tokens(3, 5) == expected
    seen: dict[int, list[int]] = {1: [], 2: []}
    finished: list[int] = []
    while len(finished) < 2:
        message = first.receive()
        assert isinstance(message, Outputs)
        for h, t in zip(
            memoryview(message.handles).cast("q").tolist(),
            memoryview(message.token_ids).cast("i").tolist(),
            strict=True,
        ):
            seen[h].append(t)
        finished += [f.handle for f in message.finished]
    assert seen == {1: expected, 2: expected}


def test_an_aborted_request_yields_nothing_more(tmp_path: Path) -> None:
    engine = EngineThread(tmp_path, pause=0.002).start()
    peer = Peer(engine.address)
    peer.send(Add([request(1, ENDLESS)]))
    peer.tokens(1, 3)
    peer.send(Abort([1, 77]))
    peer.send(Call(5, "reset_prefix_cache", []))
    message = peer.reply()
    assert (message.id, message.result) == (5, True)
    assert not engine.core.rows
    engine.kill()


def test_requests_of_another_incarnation_are_not_computed(engine: EngineThread) -> None:
    peer = Peer(engine.address)
    peer.send(Add([request(1, epoch=7), request(2)]))
    assert peer.tokens(2, 5) == answer(PROMPT, 5)
    assert [r.handle for r in engine.core.added] == [2]


def test_calls_reach_the_core_or_the_workers_and_errors_come_back(engine: EngineThread) -> None:
    peer = Peer(engine.address)
    for call, result, error in (
        (Call(1, "reset_prefix_cache", []), True, None),
        (Call(2, "echo", [1, "a"]), [1, "a"], None),
        (Call(3, "no_such", []), None, "ValueError: no method no_such"),
        (Call(4, "check_integrity", []), None, "AssertionError: two blocks are one"),
        (Call(5, "reset_prefix_cache", [1, 2, 3]), None, "TypeError"),
    ):
        peer.send(call)
        reply = peer.receive()
        assert reply.id == call.id
        assert reply.result == result
        assert (error or "") in (reply.error or "")
        assert (reply.error is None) == (error is None)


def test_no_heartbeat_is_expected_during_a_call(tmp_path: Path) -> None:
    """It may take longer than --engine-step-timeout, also while there are requests."""
    engine = EngineThread(tmp_path, pause=0.001)
    status = StatusReader(str(tmp_path / "status"))
    seen: list[int | None] = []

    def reset(reset_running_requests: bool = False) -> bool:
        seen.append(status.heartbeat())
        return True

    engine.core.reset_prefix_cache = reset  # type: ignore[method-assign]
    peer = Peer(engine.start().address)
    peer.send(Add([request(1, ENDLESS)]))
    peer.tokens(1, 1)
    peer.send(Call(1, "reset_prefix_cache", []))
    assert peer.reply().result is True
    assert seen == [None]
    peer.tokens(1, 1)
    assert status.heartbeat() is not None
    engine.kill()


def test_a_new_connection_forgets_the_requests_of_the_one_before(tmp_path: Path) -> None:
    """Not even their ends are sent: the client may have requested the same again."""
    engine = EngineThread(tmp_path, pause=0.002).start()
    before = Peer(engine.address)
    before.send(Add([request(1, ENDLESS), request(2, ENDLESS)]))
    before.tokens(1, 3)
    peer = Peer(engine.address)
    assert isinstance(peer.ready, Ready)
    assert not engine.core.rows
    assert before.is_disconnected()
    peer.send(Add([request(1, 20)]))
    ends: list[tuple[int, int]] = []
    tokens: list[int] = []
    while not ends:
        message = peer.receive()
        tokens += memoryview(message.token_ids).cast("i").tolist()
        ends += [(f.handle, f.reason) for f in message.finished]
    assert ends == [(1, FinishReason.LENGTH)]
    assert tokens == answer(PROMPT, 20)
    engine.kill()


def test_a_client_that_disconnects_has_its_unfinished_requests_aborted(tmp_path: Path) -> None:
    """Only those: what has finished is remembered nowhere."""
    engine = EngineThread(tmp_path, pause=0.002).start()
    leaving, staying = Peer(engine.address, 0), Peer(engine.address, 1)
    leaving.send(Add([request(1, 3), request(2, ENDLESS), request(3, 3)]))
    leaving.tokens(3, 3)
    leaving.tokens(2, 1)
    leaving.connection.close()
    staying.send(Add([request(4, 100, client=1)]))
    assert staying.tokens(4, 100) == answer(PROMPT, 100)
    assert not engine.core.rows
    assert engine.core.aborts == [({2}, 0)]
    engine.kill()


def test_it_ends_with_its_launcher_when_idle_and_when_busy(tmp_path: Path) -> None:
    idle = EngineThread(tmp_path, epoch=1).start()
    idle.kill()
    assert idle.error is None
    busy = EngineThread(tmp_path, epoch=2, pause=0.002).start()
    peer = Peer(busy.address)
    peer.send(Add([request(1, ENDLESS, epoch=2)]))
    peer.tokens(1, 1)
    before = busy.core.num_steps
    busy.kill()
    assert busy.core.num_steps - before < 50 * CHECK_EVERY


def test_an_idle_engine_sleeps(engine: EngineThread) -> None:
    Peer(engine.address)
    assert engine.thread.ident is not None
    # Of this thread alone: what other tests have left may be at work beside it.
    clock = time.pthread_getcpuclockid(engine.thread.ident)
    before = time.clock_gettime(clock)
    # Nothing is waited for: this is the span over which CPU time is measured.
    time.sleep(0.3)
    assert time.clock_gettime(clock) - before < 0.1


def test_an_idle_engine_runs_its_idle_tasks_and_sends_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "IDLE", 0.01)
    engine = EngineThread(tmp_path)
    peer = Peer(engine.start().address)
    engine.core.idle_tasks.finds = [None, Stats(reserved_blocks=7)]
    assert peer.receive().stats.reserved_blocks == 7
    engine.kill()


def test_a_violated_invariant_ends_an_idle_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "IDLE", 0.01)
    engine = EngineThread(tmp_path)
    engine.core.idle_tasks.finds = [None, AssertionError("block 7: 1 refs, free=True")]
    engine.start()
    engine.thread.join(60)
    assert isinstance(engine.error, AssertionError)


def test_a_failing_step_ends_the_process(tmp_path: Path) -> None:
    def crash(rows: list[Any]) -> None:
        raise MemoryError("no more")

    engine = EngineThread(tmp_path, on_step=crash).start()
    peer = Peer(engine.address)
    peer.send(Add([request(1)]))
    engine.thread.join(60)
    assert isinstance(engine.error, MemoryError)


def test_arrivals_are_received_while_the_device_computes(tmp_path: Path) -> None:
    """A request sent during a step is in the core before the step ends."""
    in_step, sent = threading.Event(), threading.Event()

    def second_step(rows: list[Row]) -> None:
        if len(rows[0].history) == len(PROMPT) + 1:
            in_step.set()
            sent.wait(60)

    engine = EngineThread(tmp_path, on_step=second_step)
    take, taken = engine.core.while_waiting, []
    assert take is not None

    def take_and_count() -> None:
        take()
        taken.append(len(engine.core.added))

    engine.core.while_waiting = take_and_count
    engine.start()
    peer = Peer(engine.address)
    peer.send(Add([request(1)]))
    assert in_step.wait(60)
    peer.send(Add([request(2)]))
    sent.set()
    assert peer.tokens(2, 5) == answer(PROMPT, 5)
    assert taken[:2] == [1, 2]
    engine.kill()


def test_garbage_on_the_socket_does_not_end_the_engine(engine: EngineThread) -> None:
    path = engine.address.removeprefix("ipc://")
    strangers = [b"\xff" * 8, b"GET / HTTP/1.1\r\n\r\n", b"\4\0\0\0name", b"\2\0\0\0cx", b""]
    strangers += [b"\3\0\0\0c-1", b"\4\0\0\0c\xc2\xb2x", b"\x1e\0\0\0c" + b"9" * 29]
    for data in strangers:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(path)
            stranger.sendall(data)
    peer = Peer(engine.address)
    peer.send(Add([request(1)]))
    assert peer.tokens(1, 5) == answer(PROMPT, 5)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        encode({"type": "add"}),
        encode({"type": "add", "requests": [1]}),
        encode({"type": "add", "requests": "none"}),
        encode({"type": "abort", "handles": [-(2**63), "x"]}),
        encode({"type": "nothing"}),
        encode(Add([request(1)]))[:-3],
        encode(Abort([7])) + b"\0",
        encode({"type": "call", "id": 1, "method": 5}),
        b"\xa5\xff\xff\xff\xff\xff",
        b"\x81\xa4type\xa5\xff\xfe\xfd\xfc\xfb",
    ],
)
def test_a_client_that_sends_a_malformed_message_is_disconnected_alone(
    tmp_path: Path, payload: bytes
) -> None:
    engine = EngineThread(tmp_path, pause=0.001).start()
    malformed, other = Peer(engine.address, 0), Peer(engine.address, 1)
    malformed.send(Add([request(1, ENDLESS)]))
    malformed.tokens(1, 1)
    other.send(Add([request(2, 50, client=1)]))
    malformed.connection.send(payload)
    malformed.connection.send(encode(Add([request(3, ENDLESS)])))
    assert malformed.is_disconnected()
    assert other.tokens(2, 50) == answer(PROMPT, 50)
    assert not engine.core.rows
    assert Peer(engine.address, 0).ready.epoch == 1
    engine.kill()


def test_the_status_file_outlives_its_writer(tmp_path: Path) -> None:
    path = str(tmp_path / "status")
    assert StatusReader(path).rows() == []
    recorder = StatusFile(path, 4)
    assert StatusReader(path).rows() == []
    for rows in ([(1, 5), (2, 6), (3, 7), (1 << 41, 8)], [(7, 20)]):
        handles, lengths = zip(*rows, strict=True)
        recorder.record(array("q", handles), array("q", lengths))
        assert StatusReader(path).rows() == rows
    recorder.arrived(array("q", [8, 9]))
    assert StatusReader(path).rows() == [(7, 20), (8, 0), (9, 0)]
    recorder.arrived(array("q", [10, 11, 12]))
    assert StatusReader(path).rows()[3:] == [(10, 0)], "as many as there is room for"
    recorder.record(array("q"), array("q"))
    assert StatusReader(path).rows() == []
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_status_file_in_memory_is_shared_with_child_processes() -> None:
    path = status_file_path("/no/such/folder")
    pid = os.fork()
    if not pid:
        try:
            StatusFile(path, 4).record(array("q", [5]), array("q", [9]))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert StatusReader(path).rows() == [(5, 9)]


def test_the_heartbeat_changes_with_progress(tmp_path: Path) -> None:
    path = str(tmp_path / "status")
    assert StatusReader(path).heartbeat() is None
    recorder = StatusFile(path, 4)
    assert StatusReader(path).heartbeat() is None
    seen = set()
    for _ in range(3):
        recorder.heartbeat()
        seen.add(StatusReader(path).heartbeat())
        recorder.record(array("q", [1]), array("q", [1]))
    assert len(seen) == 3
    recorder.mark_idle()
    assert StatusReader(path).heartbeat() is None


def test_a_busy_engine_has_a_heartbeat_and_an_idle_one_none(tmp_path: Path) -> None:
    engine = EngineThread(tmp_path, pause=0.001).start()
    path = str(tmp_path / "status")
    peer = Peer(engine.address)
    peer.send(Add([request(1, ENDLESS)]))
    peer.tokens(1, 1)
    first = StatusReader(path).heartbeat()
    peer.tokens(1, 20)
    assert first is not None
    assert first != StatusReader(path).heartbeat()
    assert [handle for handle, _ in StatusReader(path).rows()] == [1]
    peer.send(Abort([1]))
    peer.send(Call(1, "echo", []))
    peer.reply()
    while StatusReader(path).heartbeat() is not None:
        time.sleep(0.001)
    engine.kill()
