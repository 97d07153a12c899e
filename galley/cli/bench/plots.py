"""Plots of benchmark results. Needs matplotlib, the optional extra `bench`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from galley.cli.bench.traffic import Run
from galley.config.extras import install_command
from galley.errors import ConfigError


def require() -> None:
    """Check for matplotlib. Raises ConfigError if it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"--plot needs matplotlib: {install_command('bench')}", field="plot")


def figure(rows: int, columns: int, width: float = 10.0, height: float = 4.0) -> tuple[Any, Any]:
    """A figure that needs no display, and its axes [rows, columns]."""
    require()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(width, height * rows), squeeze=False)


def save(drawing: Any, path: str, dpi: int = 120) -> None:
    from matplotlib import pyplot

    drawing.tight_layout()
    drawing.savefig(path, dpi=dpi)
    pyplot.close(drawing)


def plot_run(run: Run, result: Mapping[str, Any], path: str) -> None:
    """Plot one run: TTFT and latency of each request over its start time, inter-token latency over
    time, and the distribution of inter-token latencies."""
    drawing, axes = figure(3, 1, height=3.2)
    done = [o for o in run.outcomes if o.success]
    start = np.array([o.start - run.began for o in done])
    top, middle, low = axes[:, 0]
    top.plot(start, [o.ttft * 1e3 for o in done], ".", label="TTFT")
    top.plot(start, [o.latency * 1e3 for o in done], ".", label="end to end")
    top.set(xlabel="sent at, s", ylabel="ms", yscale="log")
    top.set_title(
        f"{result['model_id']}: {result['output_throughput']:.0f} output tok/s, "
        f"{result['completed']} requests"
    )
    top.legend()
    for o in done:
        moments = o.start - run.began + o.ttft + np.cumsum(o.itls)
        middle.plot(moments, np.array(o.itls) * 1e3, ".", markersize=2, color="C0", alpha=0.4)
    middle.set(xlabel="time, s", ylabel="gap between tokens, ms")
    gaps = np.sort([gap * 1e3 for o in done for gap in o.itls if gap > 0])
    if len(gaps):
        low.plot(gaps, np.arange(1, len(gaps) + 1) / len(gaps))
    low.set(xlabel="gap between tokens, ms", ylabel="share of gaps below", xscale="log")
    save(drawing, path)


def plot_roofline(result: Mapping[str, Any], path: str) -> None:
    """Plot the machine's roofline and the operations of a `bench kernels` result."""
    drawing, axes = figure(1, 1, height=6.0)
    axis, limits = axes[0][0], result["limits"]
    intensity = np.logspace(-1, 4, 200)
    for name, peak in limits["peak"].items():
        if peak:
            roof = np.minimum(intensity * limits["read"], peak) / 1e9
            axis.plot(intensity, roof, color="0.6", linewidth=1)
            axis.annotate(name, (intensity[-1], peak / 1e9), fontsize=8)
    for step in result["steps"]:
        shape = step["shape"]
        rows = [r for r in step["operations"] if r["GB/s"] and r["GFLOP/s"]]
        axis.plot(
            [r["GFLOP/s"] / r["GB/s"] for r in rows],
            [r["GFLOP/s"] for r in rows],
            "o",
            label=f"{shape['rows']} rows, {shape['new']} new tokens",
        )
    axis.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="G(FL)OP/s")
    axis.legend()
    axis.grid(True, alpha=0.3)
    save(drawing, path)


def plot_curves(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], x: str, ys: Sequence[str], path: str
) -> None:
    """Plot fields over another field, one panel for each of `ys`, one line per name in `curves`."""
    drawing, axes = figure(1, len(ys), width=5.0 * len(ys))
    for axis, y in zip(axes[0], ys, strict=True):
        for name, results in curves.items():
            axis.plot([r[x] for r in results], [r[y] for r in results], "o-", label=name)
        axis.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))
        values = [float(r[x]) for results in curves.values() for r in results]
        if min(values) > 0 and max(values) > 16 * min(values):
            axis.set_xscale("log")
        axis.grid(True, alpha=0.3)
    axes[0][0].legend()
    save(drawing, path)
