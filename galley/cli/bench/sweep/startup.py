"""`galley bench sweep startup`: measures start-up times over lists of settings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from galley.cli.bench.flags import BenchParser
from galley.cli.bench.startup import StartupFlags
from galley.cli.bench.sweep.experiment import (
    ExperimentFlags,
    Record,
    folder_of,
    place,
    run_file,
    with_settings,
    write_summary,
    write_table,
)
from galley.cli.bench.sweep.params import NAME, Settings, apply, command_of, read_params
from galley.cli.bench.sweep.serve import execute
from galley.cli.bench.tables import print_table
from galley.cli.parser import make
from galley.config.flags import flags_of
from galley.config.resolve import SECTIONS
from galley.errors import ConfigError

_SHOWN = ("avg_cold_startup_time", "avg_warm_startup_time", "avg_engine_restart_time")


@dataclass(frozen=True)
class StartupSweepFlags:
    """Sweep"""

    startup_cmd: str = "galley bench startup"
    """Command that measures starts; the result path is appended."""
    serve_params: str | None = None
    """Server settings: JSON, or a JSON file. Settings unknown to the command are ignored."""
    startup_params: str | None = None
    """Settings of the measurement: JSON, or a JSON file."""
    strict_params: bool = False
    """Refuse settings unknown to the command."""
    num_runs: int = 1
    """Runs of each combination."""


def main(argv: list[str]) -> int:
    parser = BenchParser(
        "bench sweep startup",
        "Measure starts under every combination of settings, and tabulate the results.",
        [StartupSweepFlags, ExperimentFlags],
    )
    values = parser.read(argv)
    flags, experiment = make(StartupSweepFlags, values), make(ExperimentFlags, values)
    if flags.num_runs < 1:
        raise ConfigError("--num-runs must be at least 1.", field="num_runs")
    folder = folder_of(experiment)
    servers = taken(read_params(flags.serve_params, "serve-params"), flags)
    starts = taken(read_params(flags.startup_params, "startup-params"), flags)
    records: list[Record] = []
    for serving in servers:
        for starting in starts:
            base = place(folder, ("SERVE", serving), ("STARTUP", starting))
            records += run_combination(flags, experiment, serving, starting, base)
    if not experiment.dry_run:
        write_table(folder, records)
        keys = dict.fromkeys(key for s in [*servers, *starts] for key in s)
        shown = [{k: record.get(k) for k in (*keys, *_SHOWN)} for record in records]
        print_table(f"Starts, seconds ({folder})", shown)
    return 0


def taken(params: Sequence[Settings], flags: StartupSweepFlags) -> list[Settings]:
    """Settings accepted by `bench startup`. Raises ConfigError for others if strict."""
    known = {f.name for owner in (StartupFlags, *SECTIONS.values()) for f in flags_of(owner)}
    known |= {"config", NAME}
    accepted = []
    for settings in params:
        mine = {k: v for k, v in settings.items() if k.split(".")[0].replace("-", "_") in known}
        left_out = sorted(set(settings) - set(mine))
        if left_out:
            message = f"`bench startup` does not take {', '.join(left_out)}."
            if flags.strict_params:
                raise ConfigError(message, field="strict_params")
            print(f"galley: left out: {message}")
        accepted.append(mine)
    return accepted


def run_combination(
    flags: StartupSweepFlags,
    experiment: ExperimentFlags,
    serving: Settings,
    starting: Settings,
    base: Path,
) -> list[Record]:
    """Do all runs of one combination, write its summary. Raises ServerError if a run fails."""
    command = without_result(apply(starting, apply(serving, command_of(flags.startup_cmd))))
    records = []
    for run in range(flags.num_runs):
        path = run_file(base, run)
        whole = [*command, "--output-json", str(path)]
        if experiment.dry_run:
            print(shlex.join(whole))
            continue
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            execute(whole, experiment.show_stdout)
        records.append(with_settings(path, run, serving, starting))
    if records:
        write_summary(base, records)
    return records


def without_result(command: Sequence[str]) -> list[str]:
    """A command without its --output-json option."""
    remaining = []
    words = iter(command)
    for word in words:
        option, separator, _ = word.partition("=")
        if option in ("--output-json", "--output_json"):
            if not separator:
                next(words, None)
            continue
        remaining.append(word)
    return remaining
