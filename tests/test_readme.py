"""Every snippet of the README runs as printed."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SNIPPETS = re.findall(
    r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
)
SERVE, TEST = "make serve\n", "make test\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The server that the README's first command starts, on a port that it finds."""
    assert ("bash", SERVE) in SNIPPETS
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [*SERVE.split(), "PORT=0"],
            cwd=ROOT,
            stdout=said,
            stderr=said,
            env={**os.environ, "MAKEFLAGS": ""},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not (port := re.search(r"serving at http://\S+:(\d+)", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield int(port[1])
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(120)


def run(language: str, code: str) -> str:
    command = ["bash", "-ec", code] if language == "bash" else [sys.executable, "-c", code]
    env = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
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
