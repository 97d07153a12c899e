"""Every snippet of the README runs as printed."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SNIPPETS = re.findall(
    r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
)
SERVE, TEST = "make serve\n", "make test\n"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The server that the README's first command starts, on a port of our own."""
    assert ("bash", SERVE) in SNIPPETS
    port = free_port()
    log = (tmp_path_factory.mktemp("serve") / "log").open("wb")
    server = subprocess.Popen(
        [*SERVE.split(), f"PORT={port}"],
        cwd=ROOT,
        stdout=log,
        stderr=log,
        env={**os.environ, "MAKEFLAGS": ""},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not healthy(port):
            assert server.poll() is None, pathlib.Path(log.name).read_text()
            assert time.monotonic() < deadline, pathlib.Path(log.name).read_text()
            time.sleep(0.1)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(30)


def run(language: str, code: str) -> str:
    command = ["bash", "-ec", code] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("language", "code"),
    [s for s in SNIPPETS if s[1] not in (SERVE, TEST)],
    ids=lambda value: " ".join(value.split()[:4]),
)
def test_snippet(port, language, code):
    out = run(language, code.replace("localhost:8000", f"localhost:{port}"))
    if "capital of France" in code:
        assert "Paris" in out


def test_the_test_command_is_a_target_of_the_makefile():
    assert ("bash", TEST) in SNIPPETS
    assert subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True).returncode == 0
