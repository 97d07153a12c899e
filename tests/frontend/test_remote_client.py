"""The client over real sockets: streams, cancellation, slow readers, and engines that die."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from galley.engine.control import Channel, EnginesLost, EngineUp
from galley.errors import EngineDead, InvalidRequest, RequestFailed, ServerError, Unsupported
from galley.frontend.client import RequestStream
from galley.frontend.input_processor import InputProcessor, Limits
from galley.frontend.output_processor import OutputProcessor
from galley.frontend.remote_client import LauncherLink, RemoteClient
from galley.request import FinishReason, RequestOutputKind, SamplingParams
from tests.frontend.engine_thread import EngineThread
from tests.frontend.scripted import LetterTokenizer, Row, answer
from tests.frontend.test_output_processor import Recorder

DELTA = RequestOutputKind.DELTA
PROMPT = "hello"


def text_of(n: int, prompt: str = PROMPT) -> str:
    return bytes(answer(list(prompt.encode()), n)).decode()


class Frontend:
    """A client, the launcher's end of its channel, and the engines that a test has started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launcher, theirs = Channel.pair()
        self.recorder = Recorder()
        tokenizer = LetterTokenizer()
        self.orphaned = asyncio.Event()
        self.client = RemoteClient(
            LauncherLink(theirs, 0),
            InputProcessor(Limits(128, 10_000), tokenizer),
            OutputProcessor(tokenizer, self.recorder),
            self.orphaned.set,
        )
        self.client.start()
        self.engines: list[EngineThread] = []

    def engine(self, epoch: int = 1, index: int = 0, **core: Any) -> EngineThread:
        """Start an incarnation and tell the client of it."""
        engine = EngineThread(self.folder, epoch, index, **core).start()
        self.engines.append(engine)
        self.launcher.send(engine.up)
        return engine

    def fall(
        self, engine: EngineThread, crashed: bool = False, rows: list[tuple[int, int]] | None = None
    ) -> None:
        engine.kill()
        self.launcher.send(engine.down(crashed, rows))

    def generate(self, length: int, prompt: str = PROMPT, **params: Any) -> RequestStream:
        params.setdefault("output_kind", DELTA)
        return self.client.generate(
            prompt, SamplingParams(max_tokens=length, **params), f"r{length}"
        )

    def close(self) -> None:
        self.client.close()
        for engine in self.engines:
            if engine.thread.is_alive():
                engine.kill()


def play(folder: Path, scenario: Callable[[Frontend], Awaitable[None]]) -> None:
    async def run() -> None:
        front = Frontend(folder)
        try:
            await asyncio.wait_for(scenario(front), 60)
        finally:
            front.close()

    asyncio.run(run())


async def collect(stream: RequestStream) -> tuple[str, str | None]:
    text, reason = "", None
    async for output in stream:
        for part in output.outputs:
            text += part.text
            reason = part.finish_reason
    return text, reason


async def until(happened: Callable[[], object]) -> None:
    """Wait for another thread or process to get somewhere."""
    while not happened():
        await asyncio.sleep(0.002)


def test_many_streams_each_get_their_own(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        front.engine()
        await front.client.wait_healthy()
        assert front.client.limits.max_model_len == 1000
        prompts = [f"prompt {i}" for i in range(40)]
        streams = [front.generate(20 + i, p) for i, p in enumerate(prompts)]
        got = await asyncio.gather(*(collect(s) for s in streams))
        assert got == [(text_of(20 + i, p), "length") for i, p in enumerate(prompts)]
        assert front.client.num_unfinished == 0

    play(tmp_path, scenario)


def test_a_request_may_come_before_the_engine(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        assert not front.client.healthy
        reader = asyncio.create_task(collect(front.generate(10)))
        await asyncio.sleep(0)
        front.engine()
        assert await reader == (text_of(10), "length")
        assert front.client.healthy

    play(tmp_path, scenario)


def test_user_errors_come_at_once_and_nothing_is_sent(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        engine = front.engine()
        await front.client.wait_healthy()
        with pytest.raises(InvalidRequest):
            front.generate(10, "")
        with pytest.raises(Unsupported, match="LLM"):
            front.generate(10, logits_processors=[print])
        await collect(front.generate(3))
        assert len(engine.core.added) == 1

    play(tmp_path, scenario)


def test_a_stream_goes_on_over_three_engines(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        engine = front.engine(1, pause=0.002)
        stream = front.generate(200, logprobs=None)
        text = ""
        for epoch in (2, 3):
            while len(text) < 50 * (epoch - 1):
                text += (await anext(stream)).outputs[0].text
            front.fall(engine)
            await until(lambda: not front.client.healthy)
            engine = front.engine(epoch, pause=0.002)
        rest, reason = await collect(stream)
        assert (text + rest, reason) == (text_of(200), "length")
        (replayed,) = engine.core.added
        assert len(replayed.output_token_ids) >= 4 * 100
        assert [e for e in front.recorder.events if e[0] in ("added", "finished")] == [
            ("added", replayed.handle, 0, 1),
            ("finished", replayed.handle, FinishReason.LENGTH, 200),
        ]

    play(tmp_path, scenario)


def test_a_stop_string_that_spans_a_death_is_found(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        whole = text_of(60)
        stop = whole[28:34]
        at = whole.index(stop)
        # It dies with the first letters of the stop string delivered, and shown to nobody.
        dying = front.engine(1, on_step=_stand_still_at(5 + at + 3))
        stream = front.generate(60, stop=[stop])
        await until(lambda: dying.core.num_steps == at + 3)
        await until(lambda: len(stream.state.sequences[0].token_ids) == at + 3)
        front.fall(dying)
        front.engine(2)
        assert await collect(stream) == (whole[:at], "stop")

    play(tmp_path, scenario)


def _stand_still_at(length: int) -> Callable[[list[Row]], None]:
    """An engine that says nothing more once a sequence has this length."""

    def wait(rows: list[Row]) -> None:
        if any(len(r.history) >= length for r in rows):
            raise RuntimeError("stuck")

    return wait


def test_several_answers_survive_with_one_already_finished(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        engine = front.engine(1, pause=0.002, short={"0_r100": 10})
        whole = text_of(100)
        stream = front.generate(100, n=3)
        await until(lambda: len(stream.state.sequences[1].token_ids) > 20)
        front.fall(engine)
        engine = front.engine(2)
        texts = {0: "", 1: "", 2: ""}
        async for output in stream:
            for part in output.outputs:
                texts[part.index] += part.text
        assert texts == {0: whole[:10], 1: whole, 2: whole}
        assert len(engine.core.added) == 2

    play(tmp_path, scenario)


def test_outputs_of_a_dead_engine_are_ignored(tmp_path: Path) -> None:
    """An engine that is still talking when its successor is announced is not heard any more."""

    async def scenario(front: Frontend) -> None:
        old = front.engine(1, pause=0.001)
        stream = front.generate(100)
        await anext(stream)
        new = front.engine(2)
        text, _ = await collect(stream)
        assert text_of(100).endswith(text)
        assert stream.state.sequences[0].token_ids == answer(list(PROMPT.encode()), 100)
        assert len(new.core.added) == 1
        assert old.thread.is_alive()

    play(tmp_path, scenario)


@pytest.mark.parametrize("how", ["cancel", "close", "drop", "break"])
def test_a_reader_that_leaves_frees_the_engine(tmp_path: Path, how: str) -> None:
    async def scenario(front: Frontend) -> None:
        engine = front.engine(pause=0.01)
        stream = front.generate(900)
        await anext(stream)
        if how == "cancel":
            task = asyncio.create_task(collect(stream))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "close":
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        elif how == "break":
            async for _ in stream:
                break
            stream.close()
        else:
            del stream
            gc.collect()
        await until(lambda: not engine.core.rows)
        assert front.client.num_unfinished == 0
        ends = [e for e in front.recorder.events if e[0] == "finished"]
        assert [e[2] for e in ends] == [FinishReason.ABORT]

    play(tmp_path, scenario)


def test_an_aborted_request_gets_its_last_output(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        engine = front.engine(pause=0.01)
        stream = front.generate(900)
        await anext(stream)
        front.client.abort("r900")
        front.client.abort("nobody")
        _, reason = await collect(stream)
        assert reason == "abort"
        await until(lambda: not engine.core.rows)

    play(tmp_path, scenario)


def test_a_slow_reader_gets_merged_deltas_and_costs_no_queue(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        front.engine()
        stream = front.generate(500)
        await until(lambda: front.client.num_unfinished == 0)
        outputs = [output async for output in stream]
        assert len(outputs) == 1
        assert outputs[0].outputs[0].text == text_of(500)

    play(tmp_path, scenario)


def test_calls_are_answered_or_fail_with_their_engine(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        with pytest.raises(EngineDead):
            await front.client.call("echo", 1)
        hold = threading.Event()
        engine = front.engine(on_step=lambda rows: hold.wait(60))
        await front.client.wait_healthy()
        assert await front.client.call("echo", 1, "a") == [[1, "a"]]
        with pytest.raises(ServerError, match="no method"):
            await front.client.call("nonsense")
        stream = front.generate(900)
        await until(lambda: engine.core.rows)
        pending = asyncio.create_task(front.client.call("echo", 2))
        await asyncio.sleep(0)
        front.launcher.send(engine.down())
        with pytest.raises(EngineDead):
            await pending
        hold.set()
        stream.close()

    play(tmp_path, scenario)


def test_when_no_engine_will_be_started_all_requests_fail(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        engine = front.engine(pause=0.001)
        running = front.generate(900)
        await anext(running)
        front.fall(engine)
        waiting = front.generate(5)
        front.launcher.send(EnginesLost("five restarts did not help"))
        for stream in (running, waiting):
            with pytest.raises(EngineDead, match="did not help"):
                await collect(stream)
        with pytest.raises(EngineDead):
            front.generate(5)
        with pytest.raises(EngineDead):
            await front.client.wait_healthy()

    play(tmp_path, scenario)


@pytest.fixture
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REOPEN", "RETRY"):
        monkeypatch.setattr(f"galley.frontend.connection.{name}", 0.01)


@pytest.mark.parametrize(
    "frames", [(n,) for n in (1, 2, 3, 9, 30, 31, 32, 33, 34)] + [(1, 2, 9, 11)]
)
@pytest.mark.usefixtures("retry_soon")
def test_a_connection_that_breaks_changes_nothing(tmp_path: Path, frames: tuple[int, ...]) -> None:
    """At each frame of a conversation, also the first and the last."""
    faults = ",".join(f"1:out{n}=close" for n in frames)

    async def scenario(front: Frontend) -> None:
        engine = front.engine(faults=faults, pause=0.001)
        streams = [front.generate(30, f"p{i}") for i in range(3)]
        got = await asyncio.gather(*(collect(s) for s in streams))
        assert got == [(text_of(30, f"p{i}"), "length") for i in range(3)]
        late = front.generate(40, "late")
        await anext(late)
        left = front.generate(900, "left")
        left.close()
        assert (await collect(late))[1] == "length"
        await until(lambda: not engine.core.rows)
        assert front.client.num_unfinished == 0
        ends = [e[1] for e in front.recorder.events if e[0] == "finished"]
        assert len(ends) == len(set(ends)) == 5

    play(tmp_path, scenario)


@pytest.mark.usefixtures("retry_soon")
def test_a_call_whose_reply_is_lost_fails(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        front.engine(faults="1:out2=close")
        await front.client.wait_healthy()
        with pytest.raises(EngineDead, match="over this call"):
            await front.client.call("echo", 1)
        await until(lambda: front.client.healthy)
        assert await front.client.call("echo", 2) == [[2]]

    play(tmp_path, scenario)


@pytest.mark.usefixtures("retry_soon")
def test_a_new_session_is_not_a_new_engine(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        engine = front.engine(faults="1:out9=close")
        assert await collect(front.generate(30)) == (text_of(30), "length")
        assert len(engine.core.added) == 2, "it was replayed"
        assert [e for e in front.recorder.events if e[0] == "ready"] == [("ready",)]

    play(tmp_path, scenario)


@pytest.mark.usefixtures("retry_soon")
def test_an_attempt_to_connect_ends_with_its_incarnation(tmp_path: Path) -> None:
    """The address of the dead one is tried no more once the next one is known."""

    async def scenario(front: Frontend) -> None:
        dead = EngineUp(0, 1, f"ipc://{tmp_path}/nothing")
        front.launcher.send(dead)
        await until(lambda: front.client._engines)
        engine = front.engine(2, pause=0.002)
        stream = front.generate(100)
        await anext(stream)
        # Nothing is waited for: in this time the old attempt would be repeated many times.
        await asyncio.sleep(0.1)
        await collect(stream)
        assert len(engine.core.added) == 1, "the session was never broken"

    play(tmp_path, scenario)


def test_what_a_socket_does_not_take_is_sent_as_soon_as_the_engine_reads(tmp_path: Path) -> None:
    """Without anything else to send meanwhile; and then the event loop sleeps again."""

    async def scenario(front: Frontend) -> None:
        busy, go_on = threading.Event(), threading.Event()

        def step(rows: list[Row]) -> None:
            busy.set()
            go_on.wait(60)

        front.engine(on_step=step)
        await front.client.wait_healthy()
        first = front.generate(5)
        await until(busy.is_set)
        writes = 0
        connection = front.client._engines[0]
        on_writable = connection._on_writable

        def count(socket: Any) -> None:
            nonlocal writes
            writes += 1
            on_writable(socket)

        connection._on_writable = count  # type: ignore[method-assign]
        many = [front.generate(2, "x" * 900) for _ in range(400)]
        go_on.set()
        await asyncio.gather(*(collect(s) for s in [first, *many]))
        assert writes > 0, "everything went out at once"
        before = writes
        # Nothing is waited for: a writer that is left would be called thousands of times.
        await asyncio.sleep(0.05)
        assert writes == before

    play(tmp_path, scenario)


def test_it_notices_that_its_launcher_is_gone(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        front.launcher.close()
        await front.orphaned.wait()

    play(tmp_path, scenario)


def test_two_engines_share_the_work_and_take_over_from_each_other(tmp_path: Path) -> None:
    async def scenario(front: Frontend) -> None:
        one = front.engine(1, index=0, pause=0.002)
        two = front.engine(1, index=1, pause=0.002)
        await until(lambda: len([e for e in front.client._engines.values() if e.ready]) == 2)
        streams = [front.generate(150, f"p{i}") for i in range(6)]
        await until(lambda: len(one.core.rows) + len(two.core.rows) == 6)
        assert len(one.core.rows) == len(two.core.rows) == 3
        front.fall(one)
        got = await asyncio.gather(*(collect(s) for s in streams))
        assert got == [(text_of(150, f"p{i}"), "length") for i in range(6)]
        assert len(two.core.added) == 6

    play(tmp_path, scenario)


def rows_of(engine: EngineThread) -> list[tuple[int, int]]:
    return [(handle, len(row.history)) for handle, row in engine.core.rows.items()]


def test_a_request_that_crashes_every_engine_fails_alone(tmp_path: Path) -> None:
    poison = "poison"

    def crash(rows: list[Row]) -> None:
        if any(bytes(r.prompt).decode() == poison and len(r.history) == 20 for r in rows):
            raise RuntimeError("a kernel has crashed")

    async def scenario(front: Frontend) -> None:
        prompts = [f"p{i}" for i in range(5)] + [poison] + [f"q{i}" for i in range(5)]
        streams = [front.generate(60, p) for p in prompts]
        tasks = [asyncio.create_task(collect(s)) for s in streams]
        deaths = 0
        for epoch in range(1, 10):
            engine = front.engine(epoch, on_step=crash)
            await until(
                lambda e=engine: not e.thread.is_alive() or front.client.num_unfinished == 0
            )
            if engine.thread.is_alive():
                break
            deaths += 1
            front.launcher.send(engine.down(crashed=True, rows=rows_of(engine)))
        assert deaths == 2
        for prompt, task in zip(prompts, tasks, strict=True):
            if prompt == poison:
                with pytest.raises(RequestFailed, match="crashed the engine twice"):
                    await task
            else:
                assert await task == (text_of(60, prompt), "length")

    play(tmp_path, scenario)
