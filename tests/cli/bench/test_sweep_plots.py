"""Plots of sweeps: selection, merging of runs, and the Pareto frontier."""

import json

import pytest

from galley.cli.bench.main import main
from galley.cli.bench.sweep.pareto import ParetoFlags, frontier, point
from galley.cli.bench.sweep.plot import curve
from galley.cli.bench.sweep.select import group, keep, rounded
from galley.errors import ConfigError

RUNS = [
    {"max_concurrency": c, "seqs": s, "rate": "inf", "output_throughput": c * 10.0 + run,
     "median_ttft_ms": 5.0 * c / s, "total_token_throughput": 20.0 * c}
    for s in (1, 2) for c in (1, 2, 4) for run in (0, 2)
]  # fmt: skip


@pytest.fixture
def experiment(tmp_path):
    for i, some in enumerate((RUNS[:6], RUNS[6:])):
        folder = tmp_path / f"combination{i}"
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(some))
    return tmp_path


def test_conditions_select_runs():
    assert len(keep(RUNS, "max_concurrency<=2,seqs==1")) == 4
    assert len(keep(RUNS, "rate==inf,seqs!=1")) == 6
    assert len(keep(RUNS, "max_concurrency>2")) == 4
    with pytest.raises(ConfigError, match="no field 'nope'"):
        keep(RUNS, "nope==1")
    with pytest.raises(ConfigError, match="filter-by"):
        keep(RUNS, "seqs")


def test_nearby_runs_are_merged():
    found = rounded(RUNS[:4], "output_throughput%10")
    assert [run["output_throughput"] for run in found] == [10.0, 10.0, 20.0, 20.0]
    with pytest.raises(ConfigError, match="bin-by"):
        rounded(RUNS, "output_throughput%x")
    assert list(group(RUNS, ["seqs"])) == ["seqs=1", "seqs=2"]
    assert list(group(RUNS, [])) == [""]


def test_a_curve_has_means_and_deviations():
    x, y, deviation = curve(RUNS[:6], "max_concurrency", "output_throughput")
    assert (x, y, deviation) == ([1, 2, 4], [11, 21, 41], [1, 1, 1])
    with pytest.raises(ConfigError, match="must be numbers"):
        curve([{"a": "x", "b": 1}], "a", "b")


def test_curves_are_plotted(experiment, capsys):
    argv = ["sweep", "plot", str(experiment), "--var-x", "max_concurrency", "--fig-dpi", "40"]
    argv += ["--curve-by", "seqs", "--scale-x", "log", "--fig-dir", "drawn"]
    assert main([*argv, "--dry-run"]) == 0
    assert not (experiment / "drawn").exists()
    assert main(argv) == 0
    assert (experiment / "drawn/FIGURE.png").read_bytes().startswith(b"\x89PNG")
    assert main([*argv, "--fig-by", "seqs", "--row-by", "max_concurrency", "--no-error-bars"]) == 0
    assert (experiment / "drawn/FIGURE-seqs=2.png").exists()
    assert "3 x 1 panels, 6 runs" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no field 'nope'"):
        main([*argv, "--var-y", "nope"])
    with pytest.raises(ConfigError, match="no results"):
        main(["sweep", "plot", str(experiment / "drawn")])


def test_frontier_has_the_undominated_points():
    points = [
        {"tokens_per_user": x, "tokens_per_gpu": y}
        for x, y in ((10, 10), (5, 50), (4, 40), (1, 80), (2, 50))
    ]
    assert [(p["tokens_per_user"], p["tokens_per_gpu"]) for p in frontier(points)] == [
        (1, 80), (2, 50), (5, 50), (10, 10),
    ]  # fmt: skip


def test_users_and_devices_come_from_the_run():
    run = {"output_throughput": 80.0, "max_concurrency": 4, "tensor-parallel-size": 2, "dp": 2}
    found = point(run, ParetoFlags())
    assert found is not None
    assert (found["tokens_per_user"], found["tokens_per_gpu"], found["gpu_count"]) == (20, 20, 4)
    assert point({"output_throughput": 1.0, "request_rate": "inf"}, ParetoFlags()) is None
    peak = {"output_throughput": 6.0, "max_concurrent_requests": 3}
    assert point(peak, ParetoFlags())["tokens_per_user"] == 2
    with pytest.raises(ConfigError, match="output_throughput"):
        point({}, ParetoFlags())


def test_frontier_is_plotted(experiment, capsys):
    assert main(["sweep", "plot_pareto", str(experiment)]) == 0
    assert (experiment / "pareto/PARETO.png").read_bytes().startswith(b"\x89PNG")
    assert "12 runs" in capsys.readouterr().out
