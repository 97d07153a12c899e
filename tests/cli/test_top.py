"""`galley top` with servers that answer /metrics from a script, over real sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from galley.cli.main import main
from galley.cli.top import Server, curve, parse, table

TEXT = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0"}} 3.0
vllm:num_requests_running{{engine="1"}} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0"}} 0.25
vllm:kv_cache_usage_perc{{engine="1"}} 0.75
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{{engine="0"}} {tokens}
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{{engine="0",le="+Inf"}} {tokens}
vllm:inter_token_latency_seconds_count{{engine="0"}} {tokens}
vllm:inter_token_latency_seconds_sum{{engine="0"}} {seconds}
"""


class Metrics(BaseHTTPRequestHandler):
    """Counters that gain 100 tokens of 20 ms a reading; with a key, if the server has one."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Scripted)
        if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
            self.send_error(401)
            return
        server.readings += 1
        tokens = 100 * server.readings
        body = server.text.format(tokens=tokens, seconds=0.02 * tokens).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Scripted(ThreadingHTTPServer):
    readings = 0
    key = ""
    text = TEXT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def rows(text: str) -> dict[str, list[str]]:
    """Cells by the name of their row; the names end where two spaces follow."""
    split = [line.strip().split("  ", 1) for line in text.splitlines() if line.strip()]
    return {name: rest[0].split() if rest else [] for name, *rest in split}


def test_one_interval_of_a_server(server: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", server.url + "/v1", "--once", "--interval", "0.05"]) == 0
    shown = rows(capsys.readouterr().out)
    assert shown["running"] == ["5"]
    assert shown["KV cache"] == ["75%"]
    assert shown["ITL, ms"] == ["20"]
    assert shown["preempted"] == ["–"]
    assert 0 < float(shown["output tok/s"][0].replace(",", "")) <= 100 / 0.05


def test_a_server_that_cannot_be_read_hides_no_other(
    server: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    with Scripted(("127.0.0.1", 0), Metrics) as closed:
        url = closed.url
    assert main(["top", server.url, url, "--interval", "0.05"]) == 1
    shown = rows(capsys.readouterr().out)
    assert shown["running"] == ["5"]
    assert "refused" in " ".join(shown["error"])


def test_a_key_is_sent(
    server: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "sk-1"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["top", server.url, "--interval", "0.05"]) == 1
    assert "401" in capsys.readouterr().out
    assert main(["top", server.url, "--interval", "0.05", "--api-key", "sk-1"]) == 0


def test_other_servers_are_told_apart(server: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    server.text = "# TYPE go_threads gauge\ngo_threads 9\n"
    assert main(["top", server.url, "--interval", "0.05"]) == 1
    assert "inference server" in " ".join(capsys.readouterr().out.split())


def test_a_counter_that_begins_at_nothing_after_a_restart() -> None:
    server = Server("", {}, {})
    for tokens, now in ((100, 1.0), (300, 2.0), (40, 3.0)):
        server.update({"vllm:generation_tokens_total": float(tokens)}, now)
    assert server.history == (200.0, 40.0)
    assert server.rate("vllm:generation_tokens_total") == 40.0
    server.update("gone", 4.0)
    assert server.rate("vllm:generation_tokens_total") is None
    table([server])


def test_a_curve_is_relative_to_its_largest_value() -> None:
    assert curve((0.0, 50.0, 100.0)) == " ▄█"
    assert curve((0.0, 0.0)) == "  "
    assert curve(()) == ""


def test_shares_are_not_summed() -> None:
    assert parse(TEXT.format(tokens=1, seconds=1))["vllm:kv_cache_usage_perc"] == 0.75


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["ftp://x"], "http:// or https://"),
        (["--interval", "0"], "--interval must be in"),
        (["--intervall", "1"], "--interval"),
    ],
)
def test_arguments_that_cannot_be(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *argv]) == 2
    assert said in capsys.readouterr().err
