"""Real processes that are killed in every way: streams go on, nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from galley.launcher.supervisor import SETTLED, RestartBudget
from tests.frontend.scripted import answer

ROOT = Path(__file__).parents[2]


def until(happened: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait for another process to get somewhere; its state is what is asked, not the clock."""
    end = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return result


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
        found[title] = int(child)
    return found


def is_alive(pid: int) -> bool:
    """Running: neither gone nor a zombie that waits for init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class House:
    """A launcher under test."""

    def __init__(self, fault: str = "none") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.launcher.house", fault],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.seen: set[int] = set()

    def wait_serving(self) -> House:
        assert self.process.stdout is not None
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

    def ask(self, prompt: str = "hello", n: int = 300) -> Ask:
        return Ask(self.port, prompt, n)

    def end(self) -> tuple[int, str]:
        """Wait for its end: exit code and what it said on stderr. Nobody is left behind."""
        _, said = self.process.communicate(timeout=120)
        until(lambda: not any(is_alive(pid) for pid in self.seen))
        return self.process.returncode, said

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


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


@pytest.fixture
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    house = House(getattr(request, "param", "none"))
    yield house
    house.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_a_signal_ends_all(house: House, number: signal.Signals) -> None:
    house.wait_serving()
    assert set(house.children) == {"Galley::EngineCore_0", "Galley::APIServer_0"}
    assert Path(f"/proc/{house.pid}/cmdline").read_bytes().startswith(b"Galley::Launcher")
    assert house.directory.stat().st_mode & 0o777 == 0o700
    ask = house.ask().read()
    assert (ask.text, ask.reason) == (ask.expected, "length")
    os.kill(house.pid, number)
    assert house.end() == (0, "")
    assert not house.directory.exists()


def test_a_signal_in_mid_stream_ends_all(house: House) -> None:
    house.wait_serving()
    asks = [house.ask(f"p{i}", 900).read(10) for i in range(4)]
    house.process.terminate()
    assert house.end()[0] == 0
    assert all(a.text for a in asks)


def test_streams_go_on_when_the_engine_is_killed(house: House) -> None:
    house.wait_serving()
    asks = [house.ask(f"prompt {i}") for i in range(8)]
    for at in (40, 120):
        for ask in asks:
            ask.read(at)
        engine = house.engine
        os.kill(engine, signal.SIGKILL)
        house.new("Galley::EngineCore_0", engine)
    for ask in asks:
        ask.read()
        assert (ask.text, ask.reason) == (ask.expected, "length")
    house.process.terminate()
    code, said = house.end()
    assert code == 0
    assert said.count("engine core 0 was ended by SIGKILL: starting it anew") == 2


def test_killed_while_idle_and_while_starting(house: House) -> None:
    house.wait_serving()
    for _ in range(3):
        engine = house.engine
        os.kill(engine, signal.SIGKILL)
        house.new("Galley::EngineCore_0", engine)
    ask = house.ask().read()
    assert ask.text == ask.expected


@pytest.mark.parametrize("house", ["dies-starting"], indirect=True)
def test_an_engine_killed_in_its_first_start_is_started_again(house: House) -> None:
    ask = house.wait_serving().ask().read()
    assert ask.text == ask.expected


def test_a_request_that_crashes_the_engine_fails_alone(house: House) -> None:
    house.wait_serving()
    mates = [house.ask(f"mate {i}", 200) for i in range(4)]
    poison = house.ask("poison", 200).read()
    assert poison.reason == "this request crashed the engine twice."
    for ask in mates:
        ask.read()
        assert (ask.text, ask.reason) == (ask.expected, "length")
    house.process.terminate()
    assert house.end()[1].count("was ended by SIGSEGV") == 2


@pytest.mark.parametrize("house", ["impatient"], indirect=True)
def test_an_engine_that_hangs_is_ended_and_its_streams_go_on(house: House) -> None:
    house.wait_serving()
    asks = [house.ask("hangs once"), *(house.ask(f"mate {i}") for i in range(4))]
    for ask in asks:
        ask.read()
        assert (ask.text, ask.reason) == (ask.expected, "length")
    house.process.terminate()
    code, said = house.end()
    assert code == 0
    # A machine that is busy may take a slow engine for one that hangs, once more.
    assert said.count("engine core 0 made no progress for 1.5 s: starting it anew") >= 1


@pytest.mark.parametrize("house", ["impatient"], indirect=True)
@pytest.mark.parametrize("poison", ["tar pit", "stopped"])
def test_a_request_that_hangs_every_engine_fails_alone(house: House, poison: str) -> None:
    house.wait_serving()
    mate = house.ask("mate", 200)
    assert house.ask(poison, 200).read().reason == "this request crashed the engine twice."
    mate.read()
    assert (mate.text, mate.reason) == (mate.expected, "length")
    house.process.terminate()
    # A machine that is busy may take a slow engine for one that hangs, once more.
    assert house.end()[1].count("made no progress") >= 2


@pytest.mark.parametrize("house", ["impatient"], indirect=True)
def test_an_idle_engine_is_left_alone(house: House) -> None:
    engine = house.wait_serving().engine
    # Nothing is waited for: this is the span in which it might be killed.
    time.sleep(3.5)
    assert house.engine == engine
    ask = house.ask().read()
    assert ask.text == ask.expected
    assert house.engine == engine


def test_a_dead_api_server_is_replaced_and_its_requests_freed(house: House) -> None:
    house.wait_serving()
    lost = house.ask("lost", 900).read(10)
    server = house.server
    os.kill(server, signal.SIGKILL)
    house.new("Galley::APIServer_0", server)
    assert lost.lines.read().count("done") < 900, "its connection ends with it"
    ask = house.ask().read()
    assert (ask.text, ask.reason) == (ask.expected, "length")
    assert "Galley::EngineCore_0" in house.children


@pytest.mark.parametrize("house", ["two-servers"], indirect=True)
def test_two_api_servers_share_one_engine(house: House) -> None:
    house.wait_serving()
    servers = {house.children[f"Galley::APIServer_{i}"] for i in (0, 1)}
    assert len(servers) == 2
    asks = [house.ask(f"prompt {i}") for i in range(12)]
    for ask in asks:
        ask.read(20)
    engine = house.engine
    os.kill(engine, signal.SIGKILL)
    house.new("Galley::EngineCore_0", engine)
    for ask in asks:
        ask.read()
        assert (ask.text, ask.reason) == (ask.expected, "length")
    first = house.server
    os.kill(first, signal.SIGKILL)
    assert house.new("Galley::APIServer_0", first) not in servers
    house.process.terminate()
    assert house.end()[0] == 0


def test_nothing_outlives_a_killed_launcher(house: House) -> None:
    house.wait_serving()
    house.ask("busy", 900).read(10)
    pids = set(house.children.values())
    assert len(pids) == 2
    house.process.kill()
    house.process.wait()
    until(lambda: not any(is_alive(pid) for pid in pids))
    until(lambda: not house.directory.exists())


def test_a_launcher_killed_at_once_leaves_nothing(house: House) -> None:
    pids = set(until(lambda: len(house.children) == 2 and house.children).values())
    house.process.kill()
    house.process.wait()
    until(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.parametrize(
    ("house", "code", "words"),
    [
        ("no-model", 2, "galley: no such model: try another\n"),
        ("bug", 1, "galley: RuntimeError: the loader has a bug\n"),
    ],
    indirect=["house"],
)
def test_a_failed_start_is_told_once(house: House, code: int, words: str) -> None:
    got, said = house.end()
    assert got == code
    assert said.count(words) == 1
    assert ("Traceback" in said) == (code == 1)


@pytest.mark.parametrize("house", ["second-start-fails"], indirect=True)
def test_an_engine_that_cannot_come_back_ends_the_server(house: House) -> None:
    house.wait_serving()
    ask = house.ask("hello", 900).read(10)
    os.kill(house.engine, signal.SIGKILL)
    ask.read()
    assert "5 restarts within 60 s did not help" in str(ask.reason)
    code, said = house.end()
    assert code == 1
    assert said.count("MemoryError: no room any more\n") >= 5
    assert said.count("giving up") == 1


@pytest.mark.parametrize("house", ["stubborn"], indirect=True)
def test_the_second_signal_ends_at_once(house: House) -> None:
    house.wait_serving()
    house.process.terminate()
    assert is_alive(house.server)
    house.process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert house.end()[0] == 0
    assert time.monotonic() - started < 60, "without it, a minute is granted"


@pytest.mark.parametrize("house", ["slow-server"], indirect=True)
def test_a_signal_during_start_up(house: House) -> None:
    until(lambda: "Galley::APIServer_0" in house.children)
    house.process.terminate()
    assert house.end()[0] == 0


def test_restarts_are_counted_in_a_window_and_slow_down() -> None:
    budget = RestartBudget(3, 60.0)
    assert [budget.delay(t, 1.0) for t in (0.0, 1.0, 2.0, 3.0)] == [0.0, 0.1, 0.2, None]
    assert budget.delay(60.5, 1.0) == 0.4
    assert budget.delay(61.5, SETTLED) == 0.0
    assert budget.delay(62.5, 1.0) == 0.0
    assert budget.delay(63.0, 1.0) is None


def test_who_dies_now_and_then_is_started_at_once() -> None:
    budget = RestartBudget(5, 60.0)
    assert {budget.delay(15.0 * i, 15.0) for i in range(40)} == {0.0}
