"""Sweeps: combinations, the runs themselves against a fake server, resuming, plots."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from galley.cli.bench.main import main
from galley.cli.bench.sweep import launchable, medians, read_params, title, words
from galley.errors import ConfigError

SERVE = shlex.join([sys.executable, str(Path(__file__).with_name("fake_server.py"))])
BENCH = "galley bench serve --dataset-name text --input-len 4 --output-len 3 --num-prompts 3"


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
    assert read_params("{}", "p") == [{}]


@pytest.mark.parametrize("text", ["{", "[]", "[1]", "/nowhere.json"])
def test_parameters_that_are_none(text):
    with pytest.raises(ConfigError, match="--p"):
        read_params(text, "p")


def test_settings_as_words_and_names():
    settings = {"max_num_seqs": 4, "enable_prefix_caching": False, "trace": True, "x": {"y": 1}}
    assert words(settings) == [
        "--max-num-seqs", "4", "--no-enable-prefix-caching", "--trace", "--x", '{"y": 1}',
    ]  # fmt: skip
    assert title({"a": "b/c", "d": 1}) == "a=b_c-d=1"
    assert title({}) == "default"
    assert launchable("galley serve m") == [sys.executable, "-m", "galley", "serve", "m"]
    assert launchable("vllm serve m") == ["vllm", "serve", "m"]


def test_medians_of_what_all_results_have():
    runs = [{"a": 1, "s": "x", "c": 3}, {"a": 5, "s": "y", "c": None}, {"a": 2, "s": "z", "c": 1}]
    assert medians(runs) == {"a": 2}


def test_a_sweep_runs_every_combination(tmp_path, capsys):
    argv = [
        "sweep", "serve", "--serve-cmd", SERVE, "--bench-cmd", BENCH,
        "--serve-params", '{"budget": [1, 2]}', "--bench-params", '{"max_concurrency": [1, 2]}',
        "--num-runs", "2", "--output-dir", str(tmp_path), "--experiment-name", "e",
    ]  # fmt: skip
    assert main(argv) == 0
    folder = tmp_path / "e"
    assert len(list(folder.glob("budget=*--max_concurrency=*--run*.json"))) == 8
    summary = json.loads((folder / "summary.json").read_text())
    settings = [(row["serve"]["budget"], row["bench"]["max_concurrency"]) for row in summary]
    assert settings == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all(row["completed"] == 3 and row["runs"] == 2 for row in summary)
    assert "median_ttft_ms" in capsys.readouterr().out

    times = {path: path.stat().st_mtime_ns for path in folder.glob("*run0.json")}
    gone = folder / "budget=1--max_concurrency=2--run1.json"
    gone.unlink()
    assert main([*argv, "--resume"]) == 0
    assert gone.exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times

    plot = ["sweep", "plot", str(folder), "--var-x", "max_concurrency", "--fig-name", "f"]
    assert main([*plot, "--var-y", "output_throughput,median_ttft_ms"]) == 0
    assert (folder / "f.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no field 'nope'"):
        main([*plot, "--var-y", "nope"])


def test_a_dry_run_only_prints(tmp_path, capsys):
    argv = [
        "sweep", "serve", "--serve-params", '{"max_num_seqs": [1, 2]}', "--dry-run",
        "--output-dir", str(tmp_path),
    ]  # fmt: skip
    assert main(argv) == 0
    assert capsys.readouterr().out.count("galley serve --max-num-seqs") == 2
    assert not list(tmp_path.iterdir())


def test_usage(capsys):
    assert main(["sweep"]) == 2
    assert "bench sweep serve" in capsys.readouterr().out
