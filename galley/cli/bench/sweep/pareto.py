"""`galley bench sweep plot_pareto`: tokens per second per device over tokens per second per
user, with the Pareto frontier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from galley.cli.bench.flags import BenchParser
from galley.cli.bench.plots import figure, require, save
from galley.cli.bench.sweep.experiment import Record, read_records
from galley.cli.bench.sweep.plot import experiment_folder
from galley.cli.bench.sweep.select import number_or_text, split_names
from galley.cli.parser import make
from galley.errors import ConfigError

_RANKS = (
    ("tensor_parallel_size", "tp"),
    ("pipeline_parallel_size", "pp"),
    ("data_parallel_size", "dp"),
)


@dataclass(frozen=True)
class ParetoFlags:
    """Plot"""

    user_count_var: str | None = "max_concurrency"
    """Field with the number of users; without it request_rate, then the most requests that were
    under way at a time."""
    gpu_count_var: str | None = None
    """Field with the number of devices; default: the product of the rank settings, or 1."""
    label_by: str = "max_concurrency,gpu_count"
    """Comma-separated fields to label the best runs with."""
    dry_run: bool = False
    """Print the plots that would be made."""


def main(argv: list[str]) -> int:
    parser = BenchParser(
        "bench sweep plot_pareto",
        "Draw what each user gets over what a device gives, and join the best of both.",
        [ParetoFlags],
        positionals=(("EXPERIMENT_DIR", "folder of an experiment, or of several"),),
    )
    parsed = parser.parse(argv)
    folder = experiment_folder(parsed.positionals)
    flags = make(ParetoFlags, parser.split(parsed.values))
    if not flags.dry_run:
        require()
    points = [p for r in read_records(folder) if (p := point(r, flags)) is not None]
    if not points:
        raise ConfigError(
            "no run tells its number of users (max_concurrency, request_rate).",
            field="user_count_var",
        )
    best = frontier(points)
    path = folder / "pareto" / "PARETO.png"
    print(f"{path}: {len(points)} runs, {len(best)} of them on the frontier")
    if not flags.dry_run:
        draw(points, best, split_names(flags.label_by), path)
    return 0


def point(record: Record, flags: ParetoFlags) -> Record | None:
    """A run with `tokens_per_user` and `tokens_per_gpu`; None if the number of users is unknown."""
    throughput = number(record, "output_throughput")
    if throughput is None:
        raise ConfigError("the results have no field 'output_throughput'.", field="output_dir")
    names = (flags.user_count_var, "request_rate", "max_concurrent_requests")
    users = next((n for name in names if name and (n := number(record, name))), None)
    if users is None:
        return None
    devices = number(record, flags.gpu_count_var) if flags.gpu_count_var else None
    if not devices:
        devices = 1.0
        for names_of_rank in _RANKS:
            devices *= next((n for name in names_of_rank if (n := number(record, name))), 1.0)
    return {
        **record,
        "tokens_per_user": throughput / users,
        "tokens_per_gpu": throughput / devices,
        "user_count_estimate": users,
        "gpu_count": devices,
    }


def number(record: Record, name: str) -> float | None:
    """A field's value, spelled with dashes or underscores; None if it is not a finite number."""
    for spelling in (name, name.replace("_", "-"), name.replace("-", "_")):
        value = number_or_text(record.get(spelling))
        if isinstance(value, float) and value != float("inf"):
            return value
    return None


def frontier(points: Sequence[Record]) -> list[Record]:
    """Points that no other point beats in both metrics, by increasing tokens per user."""
    best: list[Record] = []
    order = sorted(points, key=lambda p: (p["tokens_per_user"], p["tokens_per_gpu"]), reverse=True)
    for candidate in order:
        if not best or candidate["tokens_per_gpu"] >= best[-1]["tokens_per_gpu"]:
            best.append(candidate)
    return best[::-1]


def draw(
    points: Sequence[Record], best: Sequence[Record], labels: Sequence[str], path: Path
) -> None:
    drawing, axes = figure(1, 1, 8.0, 6.0)
    axis = axes[0][0]
    for some, style, name in ((points, "o", "all runs"), (best, "o-", "best of both")):
        x = [p["tokens_per_user"] for p in some]
        axis.plot(x, [p["tokens_per_gpu"] for p in some], style, label=name)
    for p in best:
        text = "\n".join(f"{name}={p[name]}" for name in labels if name in p)
        axis.annotate(text, (p["tokens_per_user"], p["tokens_per_gpu"]), fontsize=8)
    axis.set(xlabel="tokens per second for each user", ylabel="tokens per second of a device")
    axis.grid(True, alpha=0.3)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    save(drawing, str(path))
