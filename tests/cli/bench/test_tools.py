"""Small tools: tables, costs of saved results, plots, processes."""

import json
import os
import subprocess
import sys

import pytest

from galley.cli.bench import process
from galley.cli.bench.main import main
from galley.cli.bench.tables import print_table, show
from galley.errors import ConfigError
from tests.cli.bench.fake_server import fake_server

RESULT = {
    "completed": 10,
    "request_throughput": 1.0,
    "total_token_throughput": 100.0,
    "output_throughput": 50.0,
    "total_input_tokens": 500,
    "total_output_tokens": 500,
}


def test_numbers_have_three_digits():
    assert [show(v) for v in (None, 3, 0.0123, 1.234, 12.34, 12345.6, "x")] == [
        "", "3", "0.0123", "1.23", "12.3", "12346", "x",
    ]  # fmt: skip


def test_tables_align_their_columns(capsys):
    print_table("Title", [{"name": "a", "n": 1.5}, {"name": "long", "n": None}])
    assert capsys.readouterr().out.splitlines() == ["Title", "name    n", "a     1.5", "long"]
    print_table("Title", [])
    assert not capsys.readouterr().out


def test_a_saved_result_is_priced(tmp_path, capsys):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(RESULT))
    out = tmp_path / "cost.json"
    argv = ["cost", str(path), "--cost-per-hour", "0.36", "--output-json", str(out)]
    assert main(argv) == 0
    assert json.loads(out.read_text())["per_million_tokens"] == pytest.approx(1.0)
    assert "Cost per request:" in capsys.readouterr().out


def test_cost_without_a_valid_result(tmp_path):
    with pytest.raises(ConfigError, match="name the result"):
        main(["cost", "--cost-per-hour", "1"])
    path = tmp_path / "r.json"
    for text in ("[]", "{", '{"completed": 3}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="no result of bench serve"):
            main(["cost", str(path), "--cost-per-hour", "1"])
    path.write_text(json.dumps(RESULT))
    with pytest.raises(ConfigError, match="--cost-per-hour"):
        main(["cost", str(path)])


def test_run_is_plotted(tmp_path):
    picture = tmp_path / "run.png"
    with fake_server() as server:
        argv = ["serve", "--base-url", server.url, "--input-len", "4", "--output-len", "3"]
        assert main([*argv, "--num-prompts", "4", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_process_and_its_children_are_measured():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        while len(members := process.tree(parent.pid)) < 2:
            pass
        assert members[0] == parent.pid
        both = process.tree_usage(parent.pid)
        assert both.pss > process.usage(parent.pid).pss > 0
        assert both.rss >= both.pss
    finally:
        parent.communicate(b"\n")
    assert process.usage(parent.pid) == process.Usage()


def test_cpu_seconds_grow_with_work():
    before, busy = process.cpu_seconds(os.getpid()), process.machine_busy()
    while process.cpu_seconds(os.getpid()) < before + 0.1:
        pass
    assert process.machine_busy() >= busy + 0.05
