"""`galley run-batch`, as its users run it."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from galley.cli.run_batch import BatchFlags, in_order
from galley.errors import ConfigError
from tests.server.test_disconnect import wait_for
from tests.small_model import small_model

ROOT = Path(__file__).parents[2]
FLAGS = ["--max-model-len", "512", "--max-num-seqs", "4", "--kv-cache-memory-bytes", "64m"]
CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
GREEDY = {"temperature": 0, "max_tokens": 8}


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "galley", "run-batch", str(small_model()), *FLAGS, *argv],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def line(custom_id: str, url: str = CHAT, **body: Any) -> str:
    record = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(record)


LINES = [
    *(line(f"ask-{i}", **ASK, **GREEDY) for i in range(12)),
    "{ this is no JSON",
    "",
    line("text", "/v1/completions", prompt="Once upon a time", **GREEDY),
    line("response", "/v1/responses", input="Say a word.", temperature=0, max_output_tokens=4),
    line("message", "/v1/messages", model="x", **ASK, **GREEDY),
    line("bad", **ASK, temperature=-1),
    line("nowhere", "/v1/nowhere", input="x"),
    line("stream", **ASK, stream=True),
    json.dumps({"custom_id": "get", "method": "GET", "url": CHAT, "body": ASK}),
    json.dumps({"method": "POST", "url": CHAT, "body": ASK}),
    "[1, 2]",
]


def test_a_file_of_good_and_bad_lines(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(LINES))
    # A key in the environment is for clients from outside.
    done = run("-i", str(source), "-o", str(target), VLLM_API_KEY="secret")
    assert done.returncode == 1, "three lines have no custom_id"
    assert "22 requests, 8 of them failed" in done.stderr
    assert f"answers in {target}" in done.stderr
    assert "line 13: the line is not JSON" in done.stderr
    assert "line 18 (bad): " in done.stderr, "blank lines count"
    results = [json.loads(text) for text in target.read_text().splitlines()]
    ids = [f"ask-{i}" for i in range(12)]
    ids += [None, "text", "response", "message", "bad", "nowhere", "stream", "get", None, None]
    assert [f["custom_id"] for f in results] == ids
    assert len({f["id"] for f in results} | {f["response"]["request_id"] for f in results}) == 44
    answers = {f["response"]["body"]["choices"][0]["message"]["content"] for f in results[:12]}
    assert len(answers) == 1
    assert all(f["error"] is None and f["response"]["status_code"] == 200 for f in results[:12])
    by_id = {f["custom_id"]: f for f in results}
    assert by_id["text"]["response"]["body"]["object"] == "text_completion"
    assert by_id["response"]["response"]["body"]["object"] == "response"
    for name, status, words in (
        ("message", 404, "`x` does not exist"),
        ("bad", 400, "temperature"),
        ("nowhere", 400, "url must be one of"),
        ("stream", 400, "stream"),
        ("get", 400, "method"),
    ):
        assert by_id[name]["response"]["status_code"] == status
        assert words in by_id[name]["error"]["message"]
        assert by_id[name]["error"]["code"] == str(status)
        assert by_id[name]["response"]["body"] is None


def test_lines_of_a_model_that_pools(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    documents = {"query": "sea", "documents": ["the sea", "a desk"]}
    lines = [
        line("vector", "/v1/embeddings", input="sea"),
        *(line(url, url, text_1="sea", text_2=["the sea", "a"]) for url in ("/score", "/v1/score")),
        *(line(url, url, **documents) for url in ("/rerank", "/v1/rerank", "/v2/rerank")),
        line("chat", CHAT, **ASK),
    ]
    source.write_text("\n".join(lines))
    done = run("-i", str(source), "-o", str(target), "--runner", "pooling", "--fail-on-error")
    assert done.returncode == 1, done.stderr
    *good, bad = [json.loads(text) for text in target.read_text().splitlines()]
    for result, part in zip(good, ["data"] * 3 + ["results"] * 3, strict=True):
        assert result.keys() == {"id", "custom_id", "response", "error"}
        assert result["response"].keys() == {"status_code", "request_id", "body"}
        assert (result["error"], result["response"]["status_code"]) == (None, 200)
        assert result["response"]["body"][part]
    assert (bad["error"]["code"], bad["response"]["status_code"]) == ("404", 404)


class Files(http.server.BaseHTTPRequestHandler):
    """Serves one file, and accepts another."""

    content = b""
    taken: dict[str, bytes] = {}

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.taken[self.path] = body
        self.send_response(200 if self.path == "/out" else 403)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """No log."""


@pytest.fixture
def files() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = [line(f"ask-{i}", **ASK, **GREEDY) for i in range(4)]
    source.write_text("\n".join([*texts, line("ask-3", **ASK, temperature=-1)]))
    done = run("-i", str(source), "-o", str(target), "--fail-on-error")
    assert done.returncode == 1
    assert "line 5 has the custom_id of line 4" in done.stderr
    whole = target.read_text().splitlines()
    kept = "\n".join(whole[:2])
    target.write_text(f"{kept}\n{whole[2][:20]}")
    done = run("-i", str(source), "-o", str(target), "--resume")
    assert done.returncode == 0, done.stderr
    assert "2 of 5 requests are answered already" in done.stderr
    assert "3 requests, 1 of them failed" in done.stderr
    again = target.read_text().splitlines()
    assert again[:2] == whole[:2]
    bodies = [json.loads(t)["response"]["body"] for t in (*whole, *again)]
    texts = [body["choices"][0]["message"] if body else None for body in bodies]
    assert texts[:5] == texts[5:]
    source.write_text(line("another", **ASK))
    done = run("-i", str(source), "-o", str(target), "--resume")
    assert done.returncode == 2
    assert "other answers" in done.stderr


def test_from_one_url_to_another(files: str, tmp_path: Path) -> None:
    Files.content = "\n".join(LINES[:2]).encode()
    done = run("-i", f"{files}/in", "-o", f"{files}/out", "--output-tmp-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = Files.taken["/out"].decode().splitlines()
    assert [json.loads(text)["custom_id"] for text in lines] == ["ask-0", "ask-1"]
    assert not list(tmp_path.iterdir())
    # What cannot be sent is not lost.
    done = run("-i", f"{files}/in", "-o", f"{files}/no", "--output-tmp-dir", str(tmp_path))
    assert done.returncode == 2
    [kept] = tmp_path.iterdir()
    assert str(kept) in done.stderr
    assert len(kept.read_text().splitlines()) == 2


def test_killed_run_leaves_no_server(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lengths = [1, *[300] * 199]
    source.write_text("\n".join(line(str(i), **ASK, max_tokens=n) for i, n in enumerate(lengths)))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "galley", "run-batch", str(small_model()), *FLAGS]
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        process = subprocess.Popen(
            [*command, "-i", str(source), "-o", str(out)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
        )
        wait_for(lambda: out.exists() and out.stat().st_size > 0)
        assert any(Path(folder).glob("galley-batch-*/server"))
        process.kill()
        # The server removes its socket when it ends.
        wait_for(lambda: not any(Path(folder).glob("galley-batch-*/server")))
        process.wait()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--input-file is needed"),
        (["-i", "x"], "--output-file is needed"),
        (["-i", "/nowhere.jsonl", "-o", "out"], "--input-file /nowhere.jsonl"),
        (["-i", "README.md", "-o", "/nowhere/out"], "--output-file /nowhere/out"),
        (["/nowhere", "-i", "README.md", "-o", "/dev/null"], "/nowhere"),
        (["-i", "README.md", "-o", "/dev/null", "--max-num-seqs", "0"], "--max-num-seqs"),
    ],
)
def test_bad_input_is_one_sentence(argv: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "galley", "run-batch", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_order_is_preserved_and_work_is_bounded() -> None:
    under_way, most = 0, 0

    async def act(text: str) -> str:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (int(text) % 3))
        under_way -= 1
        return text

    async def collect() -> list[str]:
        return [result async for result in in_order(map(str, range(40)), act, 5)]

    assert asyncio.run(collect()) == [str(i) for i in range(40)]
    assert most == 5


def test_flags_are_needed() -> None:
    with pytest.raises(ConfigError, match="--input-file"):
        BatchFlags(output_file="x")
