"""`galley bench sweep serve_workload`: latency over throughput, between one request at a time and
all at once.

The two ends run first. Between the levels they reached, the rate or the concurrency increases in
even steps.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from galley.cli.bench.datasets import DataFlags
from galley.cli.bench.flags import BenchParser
from galley.cli.bench.sweep.experiment import ExperimentFlags, Record, place
from galley.cli.bench.sweep.params import Settings, option_of
from galley.cli.bench.sweep.serve import Sweep, SweepFlags, read_sweep, run_all, run_load
from galley.cli.bench.sweep.server import Server
from galley.errors import ConfigError

Variable = Literal["request_rate", "max_concurrency"]


@dataclass(frozen=True)
class WorkloadFlags(SweepFlags):
    """Sweep"""

    workload_var: Variable = "request_rate"
    """Load parameter to vary."""
    workload_iters: int = 10
    """Number of levels, including the two ends."""


def main(argv: list[str]) -> int:
    parser = BenchParser(
        "bench sweep serve_workload",
        "Explore latency over throughput, from one request at a time to all at once.",
        [WorkloadFlags, ExperimentFlags],
    )
    sweep, flags = read_sweep(parser, WorkloadFlags, argv)
    if flags.workload_iters < 2:
        raise ConfigError("--workload-iters must be at least 2.", field="workload_iters")
    if any(flags.workload_var in load for load in sweep.loads):
        raise ConfigError(
            f"--bench-params must not set {flags.workload_var}: that is what is varied.",
            field="bench_params",
        )

    def loads_on(server: Server | None, settings: Settings) -> list[Record]:
        return [
            record
            for load in sweep.loads
            for record in explore(sweep, flags, server, settings, load)
        ]

    # The levels depend on the results of the two ends, so a server is always needed.
    return run_all(sweep, loads_on, lambda settings: True)


def explore(
    sweep: Sweep, flags: WorkloadFlags, server: Server | None, serving: Settings, load: Settings
) -> list[Record]:
    """Run all levels of one load."""
    everything = num_prompts(flags.bench_cmd, load)
    ends = [
        level(sweep, flags, server, serving, {**load, "max_concurrency": limit}, load, limit)
        for limit in (1, everything)
    ]
    if not all(ends):
        return []
    low, high = (mean_value(records, flags.workload_var) for records in ends)
    between = np.linspace(math.ceil(low), math.floor(high), flags.workload_iters)[1:-1]
    middle = [
        record
        for value in sorted({round(value) for value in between})
        for record in level(sweep, flags, server, serving, load, load, value)
    ]
    return ends[0] + middle + ends[1]


def level(
    sweep: Sweep,
    flags: WorkloadFlags,
    server: Server | None,
    serving: Settings,
    load: Settings,
    label: Settings,
    value: int,
) -> list[Record]:
    """Do one level's runs, in a folder named after `label` and the level."""
    variable = flags.workload_var
    more = ("WL-", f"{variable}={value}")
    base = place(sweep.folder, ("SERVE", serving), ("BENCH", label), more=more)
    return run_load(sweep, server, serving, {**load, variable: value}, base)


def num_prompts(command: str, load: Settings) -> int:
    count = load.get("num_prompts") or option_of(
        shlex.split(command), "--num-prompts", "--num_prompts"
    )
    return int(count or DataFlags.num_prompts)


def mean_value(records: Sequence[Record], variable: Variable) -> float:
    """Mean over the runs of requests per second, or of concurrent requests."""
    values = []
    for record in records:
        rate = float(record["request_throughput"])
        under_way = rate * float(record["mean_e2el_ms"]) / 1e3
        values.append(rate if variable == "request_rate" else under_way)
    return sum(values) / len(values)
