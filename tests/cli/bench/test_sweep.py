"""Sweeps: combinations, runs against a fake server, resuming, failures."""

import csv
import json
import shlex
import sys
from pathlib import Path

import pytest

from galley.cli.bench.main import main
from galley.cli.bench.sweep.params import (
    apply,
    command_of,
    name_of,
    option_of,
    read_params,
    safe,
    words,
)
from galley.cli.bench.sweep.serve import read_links
from galley.errors import ConfigError, ServerError

SERVE = shlex.join([sys.executable, str(Path(__file__).with_name("fake_server.py"))])


def test_lists_are_multiplied_out(tmp_path):
    assert read_params('{"a": [1, 2], "b": [3, 4]}', "p") == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]
    assert read_params('[{"a": 1}, {"b": [2, 3]}]', "p") == [{"a": 1}, {"b": 2}, {"b": 3}]
    path = tmp_path / "p.json"
    path.write_text('{"x": "y"}')
    assert read_params(str(path), "p") == [{"x": "y"}]
    assert read_params("{}", "p") == read_params(None, "p") == [{}]


def test_combinations_have_names():
    found = read_params('{"first": {"a": 1}, "second": {"a": [2, 3]}}', "p")
    assert [name_of(one) for one in found] == ["first", "second-a=2", "second-a=3"]
    assert words(found[0]) == [["--a", "1"]]
    with pytest.raises(ConfigError, match="several combinations 'x'"):
        read_params('[{"_benchmark_name": "x"}, {"_benchmark_name": "x", "a": 1}]', "p")


@pytest.mark.parametrize("text", ["{", "[]", "[1]", "/nowhere.json"])
def test_invalid_parameters(text):
    with pytest.raises(ConfigError, match="--p"):
        read_params(text, "p")


def test_settings_as_options_and_names():
    settings = {"max_num_seqs": 4, "enable_prefix_caching": False, "trace": True, "x": {"y": 1}}
    command = ["serve", "--max-num-seqs", "1", "--no_trace"]
    assert apply({**settings, "c.d": True}, command) == [
        "serve", "--max-num-seqs", "4", "--no_trace", "--no-enable-prefix-caching", "--trace",
        "--x", '{"y": 1}', "--c.d=true",
    ]  # fmt: skip
    assert safe(name_of({"a": "b/..", "d": 1})) == "a=b___-d=1"
    assert command_of("galley serve m") == [sys.executable, "-m", "galley", "serve", "m"]
    assert command_of("vllm serve m") == ["vllm", "serve", "m"]
    assert option_of(["x", "--port", "1"], "-p", "--port") == "1"
    assert option_of(["x", "--port=2"], "--port") == "2"
    assert option_of(["x"], "--port") is None
    assert read_links("a=b, c=d") == [("a", "b"), ("c", "d")]
    with pytest.raises(ConfigError, match="link-vars"):
        read_links("a")


def bench(tmp_path):
    """The command of a load, which needs no tokenizer: it is started for every run."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one two three"}\n')
    dataset = f"--dataset-name custom --dataset-path {file} --skip-tokenizer-init"
    return f"galley bench serve {dataset} --output-len 3 --num-prompts 3"


def sweep(tmp_path, *more):
    return [
        "sweep", "serve", "--serve-cmd", SERVE, "--bench-cmd", bench(tmp_path),
        "-o", str(tmp_path), "-e", "e", *more,
    ]  # fmt: skip


def test_a_sweep_runs_every_combination(tmp_path, capsys):
    argv = sweep(
        tmp_path, "--serve-params", '{"budget": [1, 2]}', "--num-runs", "2",
        "--bench-params", '{"max_concurrency": [1, 2]}', "--warmup-num-prompts", "1",
    )  # fmt: skip
    assert main(argv) == 0
    folder = tmp_path / "e"
    combinations = [
        folder / f"SERVE--budget={a}-BENCH--max_concurrency={b}" for a in (1, 2) for b in (1, 2)
    ]
    for combination in combinations:
        runs = json.loads((combination / "summary.json").read_text())
        assert [run["run_number"] for run in runs] == [0, 1]
        assert all(run["completed"] == 3 and run["mean_e2el_ms"] > 0 for run in runs)
        assert json.loads((combination / "run=1.json").read_text()) == runs[1]
        assert json.loads((combination / "warmup.json").read_text())["completed"] == 1
    with open(folder / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row[""] for row in rows] == [str(i) for i in range(8)]
    assert [(row["budget"], row["max_concurrency"]) for row in rows[::2]] == [
        ("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"),
    ]  # fmt: skip
    assert "median_ttft_ms" in capsys.readouterr().out

    with pytest.raises(ConfigError, match="--resume"):
        main(argv)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/warmup.json")}
    gone = [combinations[1] / "run=1.json", combinations[1] / "summary.json"]
    for path in gone:
        path.unlink()
    starts = capsys.readouterr().err.count("fake_server.py")
    assert main([*argv, "--resume"]) == 0
    assert capsys.readouterr().err.count("fake_server.py") == 1 > starts
    assert all(path.exists() for path in gone)
    assert set(times) == set(folder.glob("*/warmup.json"))


def test_only_linked_settings_are_combined(tmp_path):
    argv = sweep(
        tmp_path, "--num-runs", "1", "--serve-params", '{"seqs": [1, 2]}',
        "--bench-params", '{"max_concurrency": [1, 2]}', "--link-vars", "seqs=max_concurrency",
        "--dry-run",
    )  # fmt: skip
    assert main(argv) == 0
    assert not (tmp_path / "e").exists()
    assert main(argv[:-1]) == 0
    assert sorted(path.parent.name for path in (tmp_path / "e").glob("*/summary.json")) == [
        "SERVE--seqs=1-BENCH--max_concurrency=1",
        "SERVE--seqs=2-BENCH--max_concurrency=2",
    ]


def test_failed_run_ends_the_sweep_or_is_recorded(tmp_path):
    argv = sweep(tmp_path, "--num-runs", "1", "--bench-params", '{"num_prompts": [-1, 2]}')
    with pytest.raises(ServerError, match="num_prompts=-1 failed"):
        main(argv)
    assert main([*argv, "--resume", "--continue-on-error"]) == 1
    folder = tmp_path / "e"
    failure = json.loads((folder / "BENCH--num_prompts=-1" / "run=0.failure.json").read_text())
    assert failure["bench_overrides"] == {"num_prompts": -1}
    assert len(json.loads((folder / "BENCH--num_prompts=2" / "summary.json").read_text())) == 1


def test_exited_server_is_recorded(tmp_path):
    argv = [
        "sweep", "serve", "--serve-cmd", f"{sys.executable} -c pass", "--continue-on-error",
        "-o", str(tmp_path), "-e", "e",
    ]  # fmt: skip
    assert main(argv) == 1
    failure = json.loads((tmp_path / "e" / "SERVE-default-failure.json").read_text())
    assert "ended with 0" in failure["error"]


def test_a_workload_is_explored_between_its_ends(tmp_path):
    argv = [
        "sweep", "serve_workload", "--serve-cmd", SERVE, "--bench-cmd", bench(tmp_path),
        "--num-runs", "1", "--workload-var", "max_concurrency", "--workload-iters", "3",
        "-o", str(tmp_path), "-e", "e",
    ]  # fmt: skip
    assert main(argv) == 0
    found = {path.parent.name for path in (tmp_path / "e").glob("*/summary.json")}
    assert {"WL--max_concurrency=1", "WL--max_concurrency=3"} <= found
    with pytest.raises(ConfigError, match="must not set max_concurrency"):
        main([*argv[:-1], "f", "--bench-params", '{"max_concurrency": 4}'])


def test_starts_are_swept(tmp_path, capsys):
    script = tmp_path / "measure.py"
    script.write_text(
        "import json, sys\n"
        "out = sys.argv[sys.argv.index('--output-json') + 1]\n"
        "json.dump({'avg_cold_startup_time': 1.5, 'argv': sys.argv}, open(out, 'w'))\n"
    )
    argv = [
        "sweep", "startup", "--startup-cmd", f"{sys.executable} {script} --output-json nowhere",
        "--serve-params", '[{"max_num_seqs": 4, "nonsense": 1}]', "-o", str(tmp_path), "-e", "e",
        "--startup-params", '{"num_iters_cold": [1, 2]}',
    ]  # fmt: skip
    assert main(argv) == 0
    assert "left out: `bench startup` does not take nonsense" in capsys.readouterr().out
    for cold in (1, 2):
        folder = tmp_path / "e" / f"SERVE--max_num_seqs=4-STARTUP--num_iters_cold={cold}"
        [run] = json.loads((folder / "summary.json").read_text())
        assert run["argv"][1:5] == ["--max-num-seqs", "4", "--num-iters-cold", str(cold)]
        assert (run["run_number"], run["num_iters_cold"]) == (0, cold)
    with pytest.raises(ConfigError, match="nonsense"):
        main([*argv[:-3], "f", *argv[-2:], "--strict-params"])


def test_a_dry_run_only_prints(tmp_path, capsys):
    argv = [
        "sweep", "serve", "--serve-params", '{"max_num_seqs": [1, 2]}', "--dry-run",
        "--output-dir", str(tmp_path), "--num-runs", "1",
    ]  # fmt: skip
    assert main(argv) == 0
    assert capsys.readouterr().out.count("galley serve --max-num-seqs") == 2
    assert not list(tmp_path.iterdir())


def test_usage(capsys):
    assert main(["sweep"]) == 2
    assert "serve_workload" in capsys.readouterr().out
