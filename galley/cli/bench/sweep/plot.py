"""`galley bench sweep plot`: plots one result field over another, as curves."""

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
from galley.cli.bench.sweep.select import (
    group,
    keep,
    number_or_text,
    rounded,
    split_names,
    value_of,
)
from galley.cli.parser import make
from galley.errors import ConfigError


@dataclass(frozen=True)
class PlotFlags:
    """Plot"""

    fig_dir: str = ""
    """Folder of the plots, inside the experiment's folder."""
    fig_by: str = ""
    """Comma-separated fields: one plot per combination of their values."""
    row_by: str = ""
    """Comma-separated fields: one row of panels per combination."""
    col_by: str = ""
    """Comma-separated fields: one column of panels per combination."""
    curve_by: str | None = None
    """Comma-separated fields: one curve per combination."""
    var_x: str = "total_token_throughput"
    """Field of the x axis."""
    var_y: str = "median_ttft_ms"
    """Field of the y axis."""
    filter_by: str = ""
    """Comma-separated conditions on runs: max_concurrency<1000,backend==openai."""
    bin_by: str = ""
    """Fields to round down, to merge nearby points: request_throughput%1."""
    scale_x: str | None = None
    """Scale of the x axis, e.g. log."""
    scale_y: str | None = None
    """Scale of the y axis."""
    fig_name: str = "FIGURE"
    """File name prefix of the plots; the values of --fig-by are appended."""
    error_bars: bool = True
    """Show the standard deviation of merged runs."""
    fig_height: float = 6.4
    """Height of a panel in inches."""
    fig_dpi: int = 300
    """Dots per inch."""
    dry_run: bool = False
    """Print the plots that would be made."""


def experiment_folder(positionals: Sequence[str]) -> Path:
    """Folder given on the command line. Raises ConfigError."""
    if not positionals:
        raise ConfigError("name the experiment's folder.", field="EXPERIMENT_DIR")
    folder = Path(positionals[0])
    if not folder.exists():
        raise ConfigError(f"{folder} is not there.", field="EXPERIMENT_DIR")
    return folder


def main(argv: list[str]) -> int:
    parser = BenchParser(
        "bench sweep plot",
        "Plot a sweep's results: one field over another; others select curves, panels and plots.",
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
    for name, some in group(records, split_names(flags.fig_by)).items():
        path = folder / flags.fig_dir / (safe("-".join(filter(None, (flags.fig_name, name)))))
        draw(rounded(keep(some, flags.filter_by), flags.bin_by), flags, path.with_suffix(".png"))
    return 0


def draw(records: Sequence[Record], flags: PlotFlags, path: Path) -> None:
    """Plot one grid of panels."""
    rows = group(records, split_names(flags.row_by))
    columns = list(group(records, split_names(flags.col_by)))
    print(f"{path}: {len(rows)} x {len(columns)} panels, {len(records)} runs")
    if flags.dry_run or not records:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    width = flags.fig_height * 1.25 * len(columns)
    drawing, axes = figure(len(rows), len(columns), width, flags.fig_height)
    for line, (row, some) in zip(axes, rows.items(), strict=True):
        by_column = group(some, split_names(flags.col_by))
        for axis, column in zip(line, columns, strict=True):
            panel(axis, by_column.get(column, []), flags)
            axis.set_title("\n".join(filter(None, (row, column))))
    save(drawing, str(path), flags.fig_dpi)


def panel(axis: Any, records: Sequence[Record], flags: PlotFlags) -> None:
    """Plot the curves of some records."""
    for name, some in sorted(group(records, split_names(flags.curve_by)).items()):
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
    """Sorted x, and mean and standard deviation of y at each x. Raises ConfigError."""
    points: dict[float, list[float]] = {}
    for record in records:
        position, value = number_or_text(value_of(record, x)), number_or_text(value_of(record, y))
        if not isinstance(position, float) or not isinstance(value, float):
            raise ConfigError(f"{x} and {y} must be numbers.", field="var_x")
        points.setdefault(position, []).append(value)
    order = sorted(points)
    means = [float(np.mean(points[position])) for position in order]
    return order, means, [float(np.std(points[position])) for position in order]
