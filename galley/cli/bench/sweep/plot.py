"""`galley bench sweep plot`: a field of the results over another, as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from galley.cli.bench.flags import BenchParser
from galley.cli.bench.plots import figure, require, save
from galley.cli.bench.sweep.experiment import Record, read_records
from galley.cli.bench.sweep.params import safe
from galley.cli.bench.sweep.select import group, keep, listed, number_or_text, rounded, value_of
from galley.cli.parser import make
from galley.errors import ConfigError


@dataclass(frozen=True)
class PlotFlags:
    """Plot"""

    fig_dir: str = ""
    """Folder of the pictures, inside the experiment's."""
    fig_by: str = ""
    """Fields with commas: a picture for each combination of their values."""
    row_by: str = ""
    """Fields with commas: a row of panels for each combination."""
    col_by: str = ""
    """Fields with commas: a column of panels for each combination."""
    curve_by: str | None = None
    """Fields with commas: a curve for each combination."""
    var_x: str = "total_token_throughput"
    """Field of the x axis."""
    var_y: str = "median_ttft_ms"
    """Field of the y axis."""
    filter_by: str = ""
    """Conditions with commas that a run must meet: max_concurrency<1000,backend==openai."""
    bin_by: str = ""
    """Fields to round down, so that near points fall together: request_throughput%1."""
    scale_x: str | None = None
    """Scale of the x axis, e.g. log."""
    scale_y: str | None = None
    """Scale of the y axis."""
    fig_name: str = "FIGURE"
    """Name of the pictures; what sets one apart is added."""
    error_bars: bool = True
    """Show the standard deviation of runs that fall together."""
    fig_height: float = 6.4
    """Height of a panel in inches."""
    fig_dpi: int = 300
    """Dots per inch."""
    dry_run: bool = False
    """Say what would be drawn."""


def experiment_folder(positionals: Sequence[str]) -> Path:
    """Raises ConfigError."""
    if not positionals:
        raise ConfigError("name the experiment's folder.", field="EXPERIMENT_DIR")
    folder = Path(positionals[0])
    if not folder.exists():
        raise ConfigError(f"{folder} is not there.", field="EXPERIMENT_DIR")
    return folder


def main(argv: list[str]) -> int:
    parser = BenchParser(
        "bench sweep plot",
        "Draw a sweep's results: a field over another, curves, panels and pictures by others.",
        [PlotFlags],
        positionals=(("EXPERIMENT_DIR", "folder of an experiment, or of several"),),
        examples=("galley bench sweep plot results/a --curve-by max_num_seqs --scale-x log",),
    )
    parsed = parser.parse(argv)
    folder = experiment_folder(parsed.positionals)
    flags = make(PlotFlags, parser.split(parsed.values))
    if not flags.dry_run:
        require()
    records = read_records(folder)
    for name, some in group(records, listed(flags.fig_by)).items():
        path = folder / flags.fig_dir / (safe("-".join(filter(None, (flags.fig_name, name)))))
        draw(rounded(keep(some, flags.filter_by), flags.bin_by), flags, path.with_suffix(".png"))
    return 0


def draw(records: Sequence[Record], flags: PlotFlags, path: Path) -> None:
    """One picture: a grid of panels."""
    rows = group(records, listed(flags.row_by))
    columns = list(group(records, listed(flags.col_by)))
    print(f"{path}: {len(rows)} x {len(columns)} panels, {len(records)} runs")
    if flags.dry_run or not records:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    width = flags.fig_height * 1.25 * len(columns)
    drawing, axes = figure(len(rows), len(columns), width, flags.fig_height)
    for line, (row, some) in zip(axes, rows.items(), strict=True):
        by_column = group(some, listed(flags.col_by))
        for axis, column in zip(line, columns, strict=True):
            panel(axis, by_column.get(column, []), flags)
            axis.set_title("\n".join(filter(None, (row, column))))
    save(drawing, str(path), flags.fig_dpi)


def panel(axis: Any, records: Sequence[Record], flags: PlotFlags) -> None:
    """The curves of some records."""
    for name, some in sorted(group(records, listed(flags.curve_by)).items()):
        x, y, deviation = curve(some, flags.var_x, flags.var_y)
        if flags.error_bars:
            axis.errorbar(x, y, yerr=deviation, fmt="o-", capsize=3, label=name)
        else:
            axis.plot(x, y, "o-", label=name)
    axis.set(xlabel=flags.var_x.replace("_", " "), ylabel=flags.var_y.replace("_", " "))
    axis.grid(True, alpha=0.3)
    if flags.scale_x:
        axis.set_xscale(flags.scale_x)
    if flags.scale_y:
        axis.set_yscale(flags.scale_y)
    if flags.curve_by:
        axis.legend()


def curve(
    records: Sequence[Record], x: str, y: str
) -> tuple[list[float], list[float], list[float]]:
    """x in order, mean and standard deviation of y there. Raises ConfigError."""
    points: dict[float, list[float]] = {}
    for record in records:
        at, value = number_or_text(value_of(record, x)), number_or_text(value_of(record, y))
        if not isinstance(at, float) or not isinstance(value, float):
            raise ConfigError(f"{x} and {y} must be numbers.", field="var_x")
        points.setdefault(at, []).append(value)
    order = sorted(points)
    means = [float(np.mean(points[at])) for at in order]
    return order, means, [float(np.std(points[at])) for at in order]
