"""`bench serve` end to end against a fake server: requests, output, and result files."""

import functools
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from galley.cli.bench import endpoint
from galley.cli.bench.main import main
from galley.errors import ConfigError, ServerError
from tests.cli.bench.fake_server import fake_server

#: A part of the book that is the default: each run tokenises it.
BOOK = Path(__file__).parents[2] / "data" / "opticks.txt"
TEXT = ("--dataset-name", "text", "--dataset-path", str(BOOK))
SMALL = (*TEXT, "--input-len", "8", "--output-len", "5", "--num-prompts", "6")

#: Fields of vLLM's result file, without --save-detailed.
VLLM_FIELDS = {
    "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts",
    "request_rate", "burstiness", "max_concurrency", "duration", "completed", "failed",
    "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput",
    "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
    "max_concurrent_requests", "mean_ttft_ms", "median_ttft_ms", "std_ttft_ms", "p99_ttft_ms",
    "mean_tpot_ms", "median_tpot_ms", "std_tpot_ms", "p99_tpot_ms", "mean_itl_ms",
    "median_itl_ms", "std_itl_ms", "p99_itl_ms",
}  # fmt: skip
VLLM_DETAILS = {
    "input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times",
    "generated_texts", "errors",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_tokenizer():
    """Loaded once for all runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoint, "load_tokenizer", functools.cache(endpoint.load_tokenizer))
        yield


def bench(server, *argv, dataset=SMALL):
    return main(["serve", "--base-url", server.url, *dataset, *argv])


def test_a_run_is_reported_and_saved_with_vllms_fields(tmp_path, capsys):
    with fake_server(cached=3, delay=0.001) as server:
        code = bench(
            server, "--save-result", "--save-detailed", "--result-dir", str(tmp_path),
            "--max-concurrency", "2", "--num-warmups", "1", "--metadata", "version=7",
            "--goodput", "ttft:60000", "--label", "mine",
        )  # fmt: skip
    assert code == 0
    assert len(server.bodies) == 7
    assert server.most == 2
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("mine-infqps-concurrency2-fake-")
    result = json.loads(path.read_text())
    assert result.keys() >= VLLM_FIELDS | VLLM_DETAILS
    assert (result["completed"], result["failed"]) == (6, 0)
    assert result["total_output_tokens"] == 30
    assert result["total_input_tokens"] == 42
    assert result["cache_reuse"] == pytest.approx(18 / 42)
    assert result["request_goodput"] == result["request_throughput"]
    assert (result["version"], result["request_rate"], result["model_id"]) == ("7", "inf", "fake")
    assert result["generated_texts"] == ["word " * 5] * 6
    assert [len(gaps) for gaps in result["itls"]] == [4] * 6
    printed = capsys.readouterr().out
    assert "Output token throughput (tok/s):" in printed
    assert "P99 ITL (ms):" in printed
    assert "Fairness of 2 clients (Jain):" in printed


def test_prompts_of_warm_up_and_run_differ():
    with fake_server() as server:
        assert bench(server, "--num-warmups", "2") == 0
    assert len({body["prompt"] for body in server.bodies}) == 8


def test_request_contents():
    with fake_server() as server:
        bench(
            server, "--temperature", "0.5", "--top-k", "4", "--extra-body", '{"seed": 3}',
            "--request-id-prefix", "r-", "--header", "X-Team=blue", "--logprobs", "1",
        )  # fmt: skip
    body = server.bodies[0]
    assert body["temperature"] == 0.5
    assert (body["top_k"], body["seed"], body["logprobs"]) == (4, 3, 1)
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert "X-Team: blue" in server.headers[0]
    assert sorted(h.split("X-Request-Id: ")[1].split()[0] for h in server.headers) == [
        f"r-{i}" for i in range(6)
    ]


def test_chat_and_whole_answers():
    with fake_server() as server:
        assert bench(server, "--backend", "openai-chat") == 0
        assert server.bodies[-1]["messages"][0]["role"] == "user"
        assert server.bodies[-1]["max_completion_tokens"] == 5
        assert bench(server, "--no-stream") == 0
        assert "stream" not in server.bodies[-1]


def test_answers_ended_by_connection_close():
    with fake_server(chunked=False) as server:
        assert bench(server) == 0


def test_reuse_falls_back_to_counters(tmp_path):
    with fake_server() as server:
        bench(server, "--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["cache_reuse"] == pytest.approx(0.3)
    assert result["cached_prompt_tokens"] == 18


def test_results_can_be_appended(tmp_path):
    with fake_server() as server:
        for _ in range(2):
            bench(
                server, "--append-result", "--result-dir", str(tmp_path),
                "--result-filename", "all.jsonl",
            )  # fmt: skip
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    assert [json.loads(line)["completed"] for line in lines] == [6, 6]


def test_truncated_answers_are_failures():
    with fake_server(drop=2) as server, pytest.raises(ServerError, match=r"all 6 .* breaks off"):
        bench(server)


def test_a_failed_warm_up_ends_the_run():
    with fake_server(fail=True) as server, pytest.raises(ServerError, match="HTTP 500"):
        bench(server, "--num-warmups", "1")


def test_missing_server_is_reported():
    with socket.socket() as bound:  # and not listening, so that it refuses
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ServerError, match="no server answers"):
            main(["serve", "--base-url", url, *SMALL])


def test_arrivals_match_the_rate(tmp_path):
    with fake_server() as server:
        bench(
            server, "--request-rate", "20", "--save-result", "--save-detailed",
            "--result-dir", str(tmp_path), "--result-filename", "r.json",
        )  # fmt: skip
    result = json.loads((tmp_path / "r.json").read_text())
    starts = result["start_times"]
    assert starts == sorted(starts)
    # The loop's clock counts whole milliseconds: a timer may ring up to one of them early,
    # and the loop's idea of "now" may be one old when it is set.
    assert result["duration"] >= starts[-1] >= 6 / 20 - 0.002


def test_compared_servers_alternate(tmp_path, capsys):
    with fake_server(delay=0.001) as quick, fake_server(delay=0.02) as slow:
        code = bench(
            quick, "--compare", slow.url, "--compare-runs", "2", "--save-result",
            "--result-dir", str(tmp_path), "--result-filename", "c.json",
        )  # fmt: skip
        assert [b["prompt"] for b in quick.bodies] == [b["prompt"] for b in slow.bodies]
    assert code == 0
    assert len({b["prompt"] for b in quick.bodies}) == 12
    table = json.loads((tmp_path / "c.json").read_text())["compare"]
    assert table["output_throughput"]["ratio"] > 1
    assert table["median_e2el_ms"]["ratio"] < 1
    row = table["output_throughput"]
    assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    printed = capsys.readouterr().out
    assert "first is better" in printed
    assert "second is better" not in printed


def test_costs_are_printed(capsys):
    with fake_server() as server:
        bench(server, "--cost-per-hour", "2", "--utilization", "0.5", "--api-price-output", "10")
    printed = capsys.readouterr().out
    assert "Cost per million tokens:" in printed
    assert "Break-even, requests per hour:" in printed


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--goodput", "itl:3"], "--goodput"),
        (["--request-rate", "0"], "--request-rate"),
        (["--metric-percentiles", "x"], "--metric-percentiles"),
        (["--hf-split", "train"], "--dataset-path"),
        (["--lora-modules", "a"], "adapters"),
        (["--nonsense", "1"], "unknown option"),
        (["--metadata", "x"], "--metadata"),
    ],
)
def test_bad_command_lines_are_refused_before_any_load(argv, said):
    with pytest.raises(ConfigError, match=said):
        main(["serve", *argv])


def test_vllm_flags_without_effect_print_a_notice(capsys):
    with fake_server() as server:
        assert bench(server, "--trust-remote-code", "--tokenizer-mode", "slow") == 0
    assert "--trust-remote-code is accepted" in capsys.readouterr().err


def test_overview_and_unknown_commands(capsys):
    assert main([]) == 2
    assert "serve" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="Did you mean `serve`"):
        main(["serv"])


def test_interrupted_run_reports_what_it_has(tmp_path, capsys, monkeypatch):
    """Ctrl-C after the second answer: the table is of the requests that had one."""
    from galley.cli.bench import traffic

    def progress(total, shown):
        done = 0

        def advance():
            nonlocal done
            done += 1
            if done == 2:
                os.kill(os.getpid(), signal.SIGINT)

        return advance

    monkeypatch.setattr(traffic, "progress", progress)
    with fake_server(delay=0.001) as server:
        code = bench(
            server, "--max-concurrency", "1", "--save-result", "--result-dir", str(tmp_path)
        )
    assert code == 130
    (path,) = tmp_path.iterdir()
    assert 2 <= json.loads(path.read_text())["completed"] < 6
    told = capsys.readouterr()
    assert "6 requests → " in told.err
    assert "up to 5 out each, all at once, at most 1 in flight" in told.err
    assert "interrupted" in told.err
    assert "Output token throughput" in told.out


def test_plot_that_cannot_be_written_is_refused_before_the_run():
    with fake_server() as server:
        with pytest.raises(ConfigError, match="no file can be written"):
            bench(server, "--plot", "/nonexistent/x.png")
        assert not server.bodies
