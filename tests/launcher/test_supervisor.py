"""Real processes that are killed in every way: streams go on, nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from galley.engine.control import Channel, EngineDown
from galley.engine.heartbeat import StatusReader
from galley.launcher.child import Child
from galley.launcher.supervisor import SETTLED, Entries, Policy, RestartBudget, Supervisor
from tests.frontend.scripted import answer

ROOT = Path(__file__).parents[2]
#: Seconds that a start may take on a busy machine.
LIMIT = 120.0


def until(happened: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait for another process to get somewhere; its state is what is asked, not the clock."""
    end = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return result


@contextmanager
def ended_after(seconds: float, process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process that takes longer than this: reads of its output then end."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def children_of(pid: int) -> dict[str, int]:
    """Title → pid of a process's children."""
    found = {}
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return {}
    for child in listed:
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0").decode()
        except OSError:
            continue
        found[title.partition(" ")[0]] = int(child)
    return found


def is_alive(pid: int) -> bool:
    """Running: neither gone nor a zombie that waits for init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Launcher:
    """A launcher under test."""

    def __init__(self, fault: str = "none") -> None:
        # A folder of its own: another launcher on this machine would clean up what this one leaves.
        self.temporary = tempfile.TemporaryDirectory(prefix="launcher-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.launcher.scripted_launcher", fault],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": self.temporary.name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.started = time.monotonic()
        self.seen: set[int] = set()

    def wait_serving(self) -> Launcher:
        assert self.process.stdout is not None
        with ended_after(LIMIT, self.process):
            line = self.process.stdout.readline()
        match = re.fullmatch(r"serving at http://127\.0\.0\.1:(\d+) (\S+)\n", line)
        assert match, line or self.process.communicate()
        self.port, self.directory = int(match[1]), Path(match[2])
        self.seen |= set(self.children.values())
        return self

    @property
    def children(self) -> dict[str, int]:
        found = children_of(self.pid)
        self.seen |= set(found.values())
        return found

    @property
    def engine(self) -> int:
        return self.children["Galley::EngineCore_0"]

    @property
    def server(self) -> int:
        return self.children["Galley::APIServer_0"]

    def new(self, kind: str, old: int) -> int:
        """The pid of the successor of a dead child."""
        pid: int = until(lambda: (p := self.children.get(kind, old)) != old and p)
        return pid

    def ask(self, prompt: str = "hello", n: int = 120) -> Ask:
        return Ask(self.port, prompt, n)

    def end(self) -> tuple[int, str]:
        """Wait for its end: exit code and its log on stderr. No process is left behind."""
        _, log = self.process.communicate(timeout=120)
        until(lambda: not any(is_alive(pid) for pid in self.seen))
        return self.process.returncode, log

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.temporary.cleanup()


class Ask:
    """One request and its stream."""

    def __init__(self, port: int, prompt: str, n: int) -> None:
        self.prompt, self.n = prompt, n
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.socket.sendall(json.dumps({"prompt": prompt, "n": n}).encode() + b"\n")
        self.lines = self.socket.makefile()
        self.text = ""
        self.reason: str | None = None

    def read(self, characters: int | None = None) -> Ask:
        """Read until so much has come, or to the end."""
        while characters is None or len(self.text) < characters:
            line = json.loads(self.lines.readline())
            self.text += line["text"]
            if line["done"]:
                self.reason = line["reason"]
                break
        return self

    @property
    def expected(self) -> str:
        return bytes(answer(list(self.prompt.encode()), self.n)).decode()


@pytest.fixture(scope="module", autouse=True)
def idle() -> Iterator[Launcher]:
    """One whose engine has nothing to do while the other tests run."""
    launcher = Launcher("impatient")
    yield launcher
    launcher.close()


@pytest.fixture
def launcher(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    launcher = Launcher(getattr(request, "param", "none"))
    yield launcher
    launcher.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_a_signal_ends_all(launcher: Launcher, number: signal.Signals) -> None:
    launcher.wait_serving()
    assert set(launcher.children) == {"Galley::EngineCore_0", "Galley::APIServer_0"}
    assert Path(f"/proc/{launcher.pid}/cmdline").read_bytes().startswith(b"Galley::Launcher")
    assert launcher.directory.stat().st_mode & 0o777 == 0o700
    ask = launcher.ask().read()
    assert (ask.text, ask.reason) == (ask.expected, "length")
    os.kill(launcher.pid, number)
    assert launcher.end() == (0, "")
    assert not launcher.directory.exists()


def test_a_signal_in_mid_stream_ends_all(launcher: Launcher) -> None:
    launcher.wait_serving()
    asks = [launcher.ask(f"p{i}", 900).read(10) for i in range(4)]
    launcher.process.terminate()
    assert launcher.end()[0] == 0
    assert all(a.text for a in asks)


def test_streams_continue_when_the_engine_is_killed(launcher: Launcher) -> None:
    launcher.wait_serving()
    asks = [launcher.ask(f"prompt {i}") for i in range(8)]
    for at in (20, 60):
        for ask in asks:
            ask.read(at)
        engine = launcher.engine
        os.kill(engine, signal.SIGKILL)
        launcher.new("Galley::EngineCore_0", engine)
    for ask in asks:
        ask.read()
        assert (ask.text, ask.reason) == (ask.expected, "length")
    launcher.process.terminate()
    code, log = launcher.end()
    assert code == 0
    assert log.count("engine core 0 was ended by SIGKILL: restarting it") == 2


def test_killed_while_idle_and_while_starting(launcher: Launcher) -> None:
    launcher.wait_serving()
    for _ in range(3):
        engine = launcher.engine
        os.kill(engine, signal.SIGKILL)
        launcher.new("Galley::EngineCore_0", engine)
    ask = launcher.ask().read()
    assert ask.text == ask.expected


@pytest.mark.parametrize("launcher", ["dies-starting"], indirect=True)
def test_an_engine_killed_in_its_first_start_is_started_again(launcher: Launcher) -> None:
    ask = launcher.wait_serving().ask().read()
    assert ask.text == ask.expected


def test_a_request_that_crashes_the_engine_fails_alone(launcher: Launcher) -> None:
    launcher.wait_serving()
    mates = [launcher.ask(f"mate {i}", 200) for i in range(4)]
    poison = launcher.ask("poison", 200).read()
    assert poison.reason == "this request crashed the engine twice."
    for ask in mates:
        ask.read()
        assert (ask.text, ask.reason) == (ask.expected, "length")
    launcher.process.terminate()
    assert launcher.end()[1].count("was ended by SIGSEGV") == 2


@pytest.mark.parametrize("launcher", ["impatient"], indirect=True)
def test_a_hanging_engine_is_killed_and_its_streams_continue(launcher: Launcher) -> None:
    launcher.wait_serving()
    asks = [launcher.ask("hangs once"), *(launcher.ask(f"mate {i}") for i in range(4))]
    for ask in asks:
        ask.read()
        assert (ask.text, ask.reason) == (ask.expected, "length")
    launcher.process.terminate()
    code, log = launcher.end()
    assert code == 0
    # A machine that is busy may take a slow engine for one that hangs, once more.
    assert log.count("engine core 0 made no progress for 1.5 s: restarting it") >= 1


def test_a_request_that_hangs_every_engine_fails_alone() -> None:
    with ExitStack() as stack:
        launchers = [Launcher("impatient") for _ in range(2)]
        for launcher in launchers:
            stack.callback(launcher.close)
        mates = [launcher.wait_serving().ask("mate", 200) for launcher in launchers]
        hanging = [x.ask(p, 200) for x, p in zip(launchers, ("tar pit", "stopped"), strict=True)]
        for launcher, mate, poison in zip(launchers, mates, hanging, strict=True):
            assert poison.read().reason == "this request crashed the engine twice."
            mate.read()
            assert (mate.text, mate.reason) == (mate.expected, "length")
            launcher.process.terminate()
            # A machine that is busy may take a slow engine for one that hangs, once more.
            assert launcher.end()[1].count("made no progress") >= 2


def test_a_dead_api_server_is_replaced_and_its_requests_freed(launcher: Launcher) -> None:
    launcher.wait_serving()
    status = StatusReader(f"{launcher.directory}/status-0")
    lost = launcher.ask("lost", 900).read(10)
    server = launcher.server
    os.kill(server, signal.SIGKILL)
    launcher.new("Galley::APIServer_0", server)
    until(lambda: status.heartbeat() is None)
    assert 10 <= status.num_steps() < 800, "the request was not computed to its end"
    assert '"done": true' not in lost.lines.read()
    ask = launcher.ask().read()
    assert (ask.text, ask.reason) == (ask.expected, "length")
    assert "Galley::EngineCore_0" in launcher.children


@pytest.mark.parametrize("launcher", ["two-servers"], indirect=True)
def test_two_api_servers_share_one_engine(launcher: Launcher) -> None:
    launcher.wait_serving()
    servers = {launcher.children[f"Galley::APIServer_{i}"] for i in (0, 1)}
    assert len(servers) == 2
    asks = [launcher.ask(f"prompt {i}") for i in range(12)]
    for ask in asks:
        ask.read(20)
    engine = launcher.engine
    os.kill(engine, signal.SIGKILL)
    launcher.new("Galley::EngineCore_0", engine)
    for ask in asks:
        ask.read()
        assert (ask.text, ask.reason) == (ask.expected, "length")
    first = launcher.server
    os.kill(first, signal.SIGKILL)
    assert launcher.new("Galley::APIServer_0", first) not in servers
    launcher.process.terminate()
    assert launcher.end()[0] == 0


def test_nothing_outlives_a_killed_launcher(launcher: Launcher) -> None:
    launcher.wait_serving()
    launcher.ask("busy", 900).read(10)
    pids = set(launcher.children.values())
    assert len(pids) == 2
    launcher.process.kill()
    launcher.process.wait()
    until(lambda: not any(is_alive(pid) for pid in pids))
    until(lambda: not launcher.directory.exists())


def test_a_launcher_killed_at_once_leaves_nothing(launcher: Launcher) -> None:
    pids = set(until(lambda: len(launcher.children) == 2 and launcher.children).values())
    launcher.process.kill()
    launcher.process.wait()
    until(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.parametrize(
    ("launcher", "code", "words"),
    [
        ("no-model", 2, "galley: no such model: try another\n"),
        ("bug", 1, "galley: RuntimeError: the loader has a bug\n"),
    ],
    indirect=["launcher"],
)
def test_a_failed_start_is_reported_once(launcher: Launcher, code: int, words: str) -> None:
    got, log = launcher.end()
    assert got == code
    assert log.count(words) == 1
    assert ("Traceback" in log) == (code == 1)


@pytest.mark.parametrize("launcher", ["second-start-fails"], indirect=True)
def test_an_engine_that_cannot_come_back_ends_the_server(launcher: Launcher) -> None:
    launcher.wait_serving()
    ask = launcher.ask("hello", 900).read(10)
    os.kill(launcher.engine, signal.SIGKILL)
    ask.read()
    assert "5 restarts within 60 s did not help" in str(ask.reason)
    code, log = launcher.end()
    assert code == 1
    assert log.count("MemoryError: no room any more\n") >= 5
    assert log.count("giving up") == 1


@pytest.mark.parametrize("launcher", ["dies-stepping"], indirect=True)
def test_an_engine_that_computes_nothing_is_given_up(launcher: Launcher) -> None:
    """It starts well, and dies before it has computed a step for the request."""
    launcher.wait_serving()
    ask = launcher.ask("hello", 900).read(10)
    os.kill(launcher.engine, signal.SIGKILL)
    ask.read()
    assert "5 restarts within 60 s did not help" in str(ask.reason)
    code, log = launcher.end()
    assert code == 1
    assert log.count("was ended by SIGKILL: restarting it") == 6, "the first had made progress"


def test_an_engine_that_computes_is_never_given_up(launcher: Launcher) -> None:
    """Killed three times as often within a minute as an engine may die without progress."""
    launcher.wait_serving()
    asks = [launcher.ask(f"prompt {i}", 400) for i in range(3)]
    deaths = 15
    started = time.monotonic()
    for i in range(deaths):
        for ask in asks:
            ask.read(20 * (i + 1))
        engine = launcher.engine
        os.kill(engine, signal.SIGKILL)
        launcher.new("Galley::EngineCore_0", engine)
    took = time.monotonic() - started
    for ask in asks:
        ask.read()
        assert (ask.text, ask.reason) == (ask.expected, "length")
    launcher.process.terminate()
    code, log = launcher.end()
    assert code == 0
    assert log.count("was ended by SIGKILL: restarting it") == deaths
    assert took < 120, "the deaths were too far apart to mean anything"


@pytest.mark.parametrize("launcher", ["drains"], indirect=True)
def test_a_draining_server_gets_the_time_for_it(launcher: Launcher) -> None:
    launcher.wait_serving()
    launcher.process.terminate()
    code, said = launcher.end()
    assert code == 0
    assert said.endswith(
        "[launcher] shutting down: requests in flight have 60 s; Ctrl-C again ends now\ndrained\n"
    )


@pytest.mark.parametrize("launcher", ["stubborn"], indirect=True)
def test_the_second_signal_ends_at_once(launcher: Launcher) -> None:
    launcher.wait_serving()
    launcher.process.terminate()
    assert is_alive(launcher.server)
    launcher.process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert launcher.end()[0] == 0
    assert time.monotonic() - started < 60, "without it, a minute is granted"


def test_an_idle_engine_is_left_alone(idle: Launcher) -> None:
    engine = idle.wait_serving().engine
    # Nothing is waited for: this is the span in which it might be killed.
    until(lambda: time.monotonic() - idle.started > 4.5)
    ask = idle.ask().read()
    assert ask.text == ask.expected
    assert idle.engine == engine
    idle.process.terminate()
    assert idle.end() == (0, "")


@pytest.mark.parametrize("launcher", ["slow-server"], indirect=True)
def test_a_signal_during_start_up(launcher: Launcher) -> None:
    until(lambda: "Galley::APIServer_0" in launcher.children)
    launcher.process.terminate()
    assert launcher.end()[0] == 0


class Files:
    """The status of a dead engine."""

    def __init__(self, heartbeat: int | None, steps: int) -> None:
        self._heartbeat, self._steps = heartbeat, steps

    def heartbeat(self) -> int | None:
        return self._heartbeat

    def num_steps(self) -> int:
        return self._steps

    def rows(self) -> list[tuple[int, int]]:
        return [(7, 3)]


@pytest.fixture
def supervised() -> Iterator[Callable[[Files], tuple[Supervisor, Child, Channel, list[int]]]]:
    """A supervisor of an API server and an engine that has left these files: the supervisor, the
    engine, the API server's end of its channel, and which engines' memory was discarded.
    """
    channels: list[Channel] = []

    def make(files: Files) -> tuple[Supervisor, Child, Channel, list[int]]:
        discarded: list[int] = []
        nothing = lambda *_: None  # noqa: E731
        entries = Entries(nothing, nothing, lambda _: files, discarded.append)
        supervisor = Supervisor(entries, Policy(), lambda: None)
        ours, theirs = Channel.pair()
        channels.extend((ours, theirs))
        supervisor.children[2] = Child("server", 0, 5, 2, ours)
        engine = Child("engine", 0, 3, 1, ours, serving=True)
        return supervisor, engine, theirs, discarded

    yield make
    for channel in channels:
        channel.close()


@pytest.mark.parametrize(
    ("heartbeat", "steps", "crashed", "serving", "progress"),
    [
        (9, 0, False, True, False),
        (9, 1, False, True, True),
        (9, 1, True, True, True),
        (None, 0, False, True, True),
        (None, 0, True, True, False),
        # The file is still that of its predecessor.
        (9, 100, True, False, False),
        (None, 100, False, False, False),
    ],
)
def test_what_counts_as_progress(
    supervised: Any,
    heartbeat: int | None,
    steps: int,
    crashed: bool,
    serving: bool,
    progress: bool,
) -> None:
    supervisor, engine, server, discarded = supervised(Files(heartbeat, steps))
    engine.serving = serving
    assert supervisor._bury_engine(engine, crashed) == progress
    rows = [(7, 3)] if crashed and serving else []
    assert server.receive() == [EngineDown(0, 3, crashed, rows)]
    assert discarded == ([0] if crashed else [])


def test_the_cause_of_a_death(supervised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([0, 0, 0, 0, 1, 1])
    monkeypatch.setattr("galley.launcher.supervisor.memory_kills", lambda: next(kills))
    supervisor, engine, _, _ = supervised(Files(None, 0))
    assert supervisor._cause(engine, 3 << 8) == ("ended with code 3", True)
    assert supervisor._cause(engine, signal.SIGSEGV) == ("was ended by SIGSEGV", True)
    assert supervisor._cause(engine, signal.SIGKILL) == ("was ended by SIGKILL", False)
    sentence, crashed = supervisor._cause(engine, signal.SIGKILL)
    assert crashed, "by the kernel, since its memory had run out"
    assert "memory ran out" in sentence
    engine.failing = "made no progress for 7 s"
    assert supervisor._cause(engine, signal.SIGKILL) == ("made no progress for 7 s", True)


def test_restarts_are_counted_in_a_window_and_slow_down() -> None:
    budget = RestartBudget(3, 60.0)
    assert [budget.delay(t, 1.0, False) for t in (0.0, 1.0, 2.0, 3.0)] == [0.0, 0.1, 0.2, None]
    assert budget.delay(60.5, 1.0, False) == 0.4
    assert budget.delay(61.5, SETTLED, False) == 0.0
    assert budget.delay(62.5, 1.0, False) == 0.0
    assert budget.delay(63.0, 1.0, False) is None


def test_progress_clears_the_count() -> None:
    budget = RestartBudget(2, 60.0)
    for t in range(40):
        assert budget.delay(t, 0.1, True) == 0.0
    assert [budget.delay(50.0 + t, 0.1, False) for t in range(3)] == [0.0, 0.1, None]
    assert budget.delay(53.0, 0.1, True) == 0.0
    assert budget.delay(54.0, 0.1, False) == 0.0


def test_rare_deaths_are_followed_by_a_restart_at_once() -> None:
    budget = RestartBudget(5, 60.0)
    assert {budget.delay(15.0 * i, 15.0, False) for i in range(40)} == {0.0}
