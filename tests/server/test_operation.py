"""A real `galley serve` as an operator runs it: on a Unix socket, with a JSON log, drained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.launcher.serving import ENGINE
from tests.launcher.test_supervisor import children_of
from tests.server.test_disconnect import wait_for
from tests.small_model import small_model

ROOT = Path(__file__).parents[2]
FLAGS = ["--max-model-len", "1024", "--max-num-seqs", "8", "--kv-cache-memory-bytes", "64m"]


@contextmanager
def galley(*flags: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, its output in `log`; it has said that it serves."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "galley", "serve", str(small_model()), *FLAGS, *flags],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "startup complete" in line:
                break
        else:
            raise AssertionError(said)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_drained_on_a_unix_socket_with_a_json_log(tmp_path: Path) -> None:
    """Checklist 254."""
    path, log = tmp_path / "galley.sock", tmp_path / "log"
    flags = ["--uds", str(path), "--shutdown-timeout", "60", "--logging-config.formatter", "json"]
    with galley(*flags, "--disable-log-stats", log=log) as process:
        client = httpx.Client(
            base_url="http://galley", transport=httpx.HTTPTransport(uds=str(path)), timeout=60
        )
        body = {"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True, "stream": True}
        body["stream_options"] = {"include_usage": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            # Stopped, so that the answer is still under way when the refusals come.
            engine = children_of(process.pid)[ENGINE]
            os.kill(engine, signal.SIGSTOP)
            process.send_signal(signal.SIGTERM)
            other = httpx.Client(
                base_url="http://galley", transport=httpx.HTTPTransport(uds=str(path))
            )
            wait_for(lambda: other.get("/health").status_code == 503)
            assert other.post("/v1/completions", json=body).status_code == 503
            os.kill(engine, signal.SIGCONT)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert json.loads(rest[-4][6:])["usage"]["completion_tokens"] == 200
        assert process.wait(60) == 0
        assert not path.exists()
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {r["level"] for r in records} == {"INFO"}
    requests = [r for r in records if r["logger"] == "uvicorn.access"]
    assert any("/v1/completions" in r["message"] and "503" in r["message"] for r in requests)
    assert not any(r["logger"] == "galley.stats" for r in records)


def test_without_a_timeout_it_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "galley.sock"
    quiet = ["--log-level", "ERROR", "--uvicorn-log-level", "error"]
    with galley("--uds", str(path), *quiet, log=tmp_path / "log") as process:
        transport = httpx.HTTPTransport(uds=str(path))
        client = httpx.Client(base_url="http://galley", transport=transport, timeout=60)
        body = {"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        texts: list[str] = []

        def ask() -> None:
            with client.stream("POST", "/v1/completions", json=body) as answer:
                texts.extend(answer.iter_lines())

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: 'reason="capacity"' in metrics(path) and running(path) == 1)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0
        thread.join(60)
        # The client gets an error, not only a closed connection.
        assert any("shutting down" in line for line in texts)
        assert (tmp_path / "log").read_text() == ""


def metrics(path: Path) -> str:
    transport = httpx.HTTPTransport(uds=str(path))
    return httpx.Client(base_url="http://galley", transport=transport).get("/metrics").text


def running(path: Path) -> float:
    for line in metrics(path).splitlines():
        if line.startswith("vllm:num_requests_running"):
            return float(line.rpartition(" ")[2])
    return 0.0
