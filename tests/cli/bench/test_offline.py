"""Offline commands at small sizes."""

import json

import pytest

from galley.cli.bench.host import count_calls, measure
from galley.cli.bench.kernels import read_shapes
from galley.cli.bench.main import main
from galley.cli.bench.startup import Start, serve_command, summary
from galley.errors import ConfigError
from galley.planning.limits import measure_limits
from galley.planning.steps import Shape
from tests.cli.bench.test_serve import TEXT
from tests.small_model import LAYERS, small_model

SMALL = ("--kv-cache-memory-bytes", "64M", "--max-model-len", "512")


def test_throughput(tmp_path, capsys):
    out = tmp_path / "t.json"
    argv = [
        "throughput", *SMALL, *TEXT, "--input-len", "12", "--output-len", "4",
        "--num-prompts", "6", "--num-warmups", "1", "--disable-tqdm", "--output-json", str(out),
    ]  # fmt: skip
    assert main(argv) == 0
    result = json.loads(out.read_text())
    assert (result["num_requests"], result["num_output_tokens"]) == (6, 24)
    assert result["total_num_tokens"] == 6 * 12 + 24
    assert result["tokens_per_second"] == pytest.approx(96 / result["elapsed_time"])
    assert "total tokens/s" in capsys.readouterr().out


def test_latency(tmp_path):
    out = tmp_path / "l.json"
    argv = [
        "latency", *SMALL, "--input-len", "8", "--output-len", "3", "--batch-size", "2",
        "--num-iters-warmup", "1", "--num-iters", "3", "--output-json", str(out),
    ]  # fmt: skip
    assert main(argv) == 0
    result = json.loads(out.read_text())
    assert len(result["latencies"]) == 3
    assert result["avg_latency"] == pytest.approx(sum(result["latencies"]) / 3)
    assert set(result["percentiles"]) == {"10", "25", "50", "75", "90", "99"}


def test_kernels(tmp_path):
    out, picture = tmp_path / "k.json", tmp_path / "k.png"
    argv = [
        "kernels", str(small_model()), "--decode", "1,2", "--context", "20", "--prefill", "24",
        "--repetitions", "2", "--reference", "--output-json", str(out), "--plot", str(picture),
    ]  # fmt: skip
    assert main(argv) == 0
    result = json.loads(out.read_text())
    assert len(result["steps"]) == 3
    for step in result["steps"]:
        rows = {row["operation"]: row for row in step["operations"]}
        assert sum(row["% of step"] for row in rows.values()) == pytest.approx(100)
        attention = rows["attention 9/3 heads of 64"]
        assert attention["calls"] == LAYERS
        assert attention["reference µs"] > 0
        head = next(row for name, row in rows.items() if "49152" in name)
        assert head["roofline µs"] > 0
        assert head["calls"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_machines_limits():
    limits = measure_limits(1)
    assert 1e8 < limits.read < 1e12
    assert 1e9 < limits.peak["f32"] < 1e13
    assert all(peak == 0 or peak > 1e9 for peak in limits.peak.values())


def test_visible_pairs_of_a_step():
    assert Shape(3, 10, 1).visible == 3 * 11
    assert Shape(1, 0, 4).visible == 1 + 2 + 3 + 4
    assert Shape(2, 5, 2).visible == 2 * (6 + 7)
    assert Shape(2, 5, 2).tokens == 4


def test_host_time_has_a_fixed_number_of_calls():
    assert count_calls(1) == count_calls(32)
    figures = measure(4, 20)
    assert figures["median_us"] > 0
    parts = figures["schedule_us"] + figures["execute_us"] + figures["commit_us"]
    assert parts == pytest.approx(figures["mean_us"])


def test_host_command(tmp_path):
    out = tmp_path / "h.json"
    assert main(["host", "--running", "1,3", "--steps", "5", "--output-json", str(out)]) == 0
    assert [row["running"] for row in json.loads(out.read_text())["rows"]] == [1, 3]
    with pytest.raises(ConfigError, match="--running"):
        main(["host", "--running", "none"])


def test_startup_measures_first_token_and_restart(tmp_path):
    out = tmp_path / "s.json"
    argv = [
        "startup", *SMALL, "--num-iters-cold", "0", "--num-iters-warmup", "0",
        "--num-iters-warm", "1", "--output-json", str(out),
    ]  # fmt: skip
    assert main(argv) == 0
    result = json.loads(out.read_text())
    assert 0 < result["warm_listening_times"][0] < result["warm_startup_times"][0]
    assert result["engine_restart_times"][0] > 0.05
    assert result["warm_idle_memory_bytes"][0] > 1e7


def test_startup_summary_has_vllms_fields():
    cold, warm = [Start(1.0, 3.0, 10, None)], [Start(0.5, 1.0, 8, 0.7), Start(0.5, 2.0, 8, None)]
    result = summary(cold, warm)
    assert result["avg_cold_startup_time"] == 3.0
    assert result["avg_warm_startup_time"] == 1.5
    assert result["warm_startup_percentiles"]["50"] == 1.5
    assert result["engine_restart_times"] == [0.7]


def test_startup_passes_engine_flags_on():
    command = serve_command(
        {
            "model": "m.gguf",
            "max_num_seqs": 3,
            "enforce_eager": True,
            "enable_prefix_caching": False,
        }
    )
    assert command[1:] == [
        "-m", "galley", "serve", "m.gguf", "--max-num-seqs", "3", "--enforce-eager",
        "--no-enable-prefix-caching",
    ]  # fmt: skip


@pytest.mark.parametrize("argv", [["--decode", "0"], ["--decode", "", "--prefill", ""]])
def test_kernels_need_a_shape_to_measure(argv):
    with pytest.raises(ConfigError, match="--decode"):
        main(["kernels", *argv])


def test_shapes_of_a_command_line():
    from galley.cli.bench.kernels import KernelFlags

    assert read_shapes(KernelFlags(decode="1,2", context=9, prefill="7")) == [
        Shape(1, 9, 1),
        Shape(2, 9, 1),
        Shape(1, 0, 7),
    ]
