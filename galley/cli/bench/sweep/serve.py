"""`galley bench sweep serve`: runs every load against every server."""

from __future__ import annotations

import shlex
import statistics
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from galley.cli.bench.flags import BenchParser
from galley.cli.bench.sweep.experiment import (
    ExperimentFlags,
    Record,
    folder_of,
    numbers,
    place,
    run_file,
    with_settings,
    without_name,
    write_failure,
    write_summary,
    write_table,
)
from galley.cli.bench.sweep.params import (
    NAME,
    Settings,
    apply,
    command_of,
    name_of,
    option_of,
    read_params,
    safe,
)
from galley.cli.bench.sweep.server import Server, served
from galley.cli.bench.tables import print_table
from galley.cli.parser import make
from galley.errors import ConfigError, ServerError

_SHOWN = ("output_throughput", "median_ttft_ms", "median_itl_ms", "p99_itl_ms")
_METRICS = "ttft,tpot,itl,e2el"
F = TypeVar("F", bound="SweepFlags")


@dataclass(frozen=True)
class SweepFlags:
    """Sweep"""

    serve_cmd: str = "galley serve"
    """Server command; without --port, a free port is used."""
    bench_cmd: str = "galley bench serve"
    """Load command; the server's port and the result path are appended."""
    after_bench_cmd: str | None = None
    """Command after each run; default: the server's caches are emptied."""
    serve_params: str | None = None
    """Server settings: JSON, or a JSON file."""
    bench_params: str | None = None
    """Load settings: JSON, or a JSON file."""
    link_vars: str = ""
    """SERVER_SETTING=LOAD_SETTING, comma-separated: run only combinations where both are equal."""
    server_ready_timeout: int = 300
    """Seconds to wait for a server to answer."""
    num_runs: int = 3
    """Runs of each combination."""
    warmup_num_prompts: int = 0
    """Requests of an unmeasured warm-up run before each combination (warmup.json)."""
    continue_on_error: bool = False
    """Record a failed run, and continue."""


@dataclass
class Sweep:
    """The parsed command line."""

    flags: SweepFlags
    experiment: ExperimentFlags
    folder: Path
    servers: list[Settings]
    loads: list[Settings]
    links: list[tuple[str, str]]
    failures: int = 0

    def linked(self, server: Settings, load: Settings) -> bool:
        """Whether --link-vars allows this combination."""
        return all(a in server and b in load and server[a] == load[b] for a, b in self.links)


def read_sweep(parser: BenchParser, flags: type[F], argv: list[str]) -> tuple[Sweep, F]:
    """Parse the command line. Raises ConfigError."""
    values = parser.read(argv)
    own, experiment = make(flags, values), make(ExperimentFlags, values)
    if own.num_runs < 1 or own.warmup_num_prompts < 0:
        raise ConfigError("--num-runs must be at least 1.", field="num_runs")
    sweep = Sweep(
        own,
        experiment,
        folder_of(experiment),
        read_params(own.serve_params, "serve-params"),
        read_params(own.bench_params, "bench-params"),
        read_links(own.link_vars),
    )
    return sweep, own


def read_links(text: str) -> list[tuple[str, str]]:
    """`"a=b,c=d"` → pairs. Raises ConfigError."""
    pairs = []
    for part in filter(None, text.split(",")):
        a, separator, b = part.partition("=")
        if not separator:
            raise ConfigError(f"--link-vars takes A=B,…; got {part!r}.", field="link_vars")
        pairs.append((a.strip(), b.strip()))
    return pairs


def main(argv: list[str]) -> int:
    parser = BenchParser(
        "bench sweep serve",
        "Run every combination of server and load settings, and tabulate the results.",
        [SweepFlags, ExperimentFlags],
    )
    sweep, _ = read_sweep(parser, SweepFlags, argv)

    def loads_on(server: Server | None, settings: Settings) -> list[Record]:
        records = []
        for load in sweep.loads:
            base = place(sweep.folder, ("SERVE", settings), ("BENCH", load))
            records += run_load(sweep, server, settings, load, base)
        return records

    def left_to_do(settings: Settings) -> bool:
        places = (place(sweep.folder, ("SERVE", settings), ("BENCH", load)) for load in sweep.loads)
        return any(not (base / "summary.json").exists() for base in places)

    return run_all(sweep, loads_on, left_to_do)


def run_all(
    sweep: Sweep,
    loads_on: Callable[[Server | None, Settings], list[Record]],
    left_to_do: Callable[[Settings], bool],
) -> int:
    """Run all loads on each server in turn. Returns 1 if anything failed.

    Args:
        loads_on: runs all loads on a server with these settings (None: print, or read results).
        left_to_do: whether a server is needed for them.
    """
    records: list[Record] = []
    for settings in sweep.servers:
        try:
            with server_of(sweep, settings, left_to_do(settings)) as server:
                records += loads_on(server, settings)
        except ServerError as e:
            if not sweep.flags.continue_on_error:
                raise
            sweep.failures += 1
            name = safe(f"SERVE-{name_of(settings) or 'default'}-failure.json")
            write_failure(sweep.folder / name, e, serve_overrides=settings)
    if sweep.experiment.dry_run:
        return 0
    write_table(sweep.folder, records)
    print_table(f"Medians of the runs ({sweep.folder})", medians(records, sweep))
    return 1 if sweep.failures else 0


def server_of(
    sweep: Sweep, settings: Settings, needed: bool
) -> AbstractContextManager[Server | None]:
    flags = sweep.flags
    if sweep.experiment.dry_run:
        print(shlex.join(apply(settings, command_of(flags.serve_cmd))))
    if sweep.experiment.dry_run or not needed:
        return nullcontext()
    return served(
        flags.serve_cmd, settings, flags.server_ready_timeout, sweep.experiment.show_stdout
    )


def run_load(
    sweep: Sweep, server: Server | None, serving: Settings, load: Settings, base: Path
) -> list[Record]:
    """Do all runs of one combination, and write its summary."""
    if not sweep.linked(serving, load):
        return []
    if sweep.flags.warmup_num_prompts:
        warm = {**load, "num_prompts": sweep.flags.warmup_num_prompts}
        one_run(sweep, server, serving, warm, base / "warmup.json", -1)
    records = []
    for run in range(sweep.flags.num_runs):
        record = one_run(sweep, server, serving, load, run_file(base, run), run)
        if record is not None:
            records.append(record)
    if records:
        write_summary(base, records)
    return records


def one_run(
    sweep: Sweep,
    server: Server | None,
    serving: Settings,
    load: Settings,
    path: Path,
    run: int,
) -> Record | None:
    """Result of a run, read from its file if that exists; None if the run failed or was not done.

    Raises:
        ServerError: the run failed, without --continue-on-error.
    """
    flags = sweep.flags
    command = apply(load, command_of(flags.bench_cmd))
    if sweep.experiment.dry_run:
        print("  " + shlex.join(command))
        return None
    try:
        if not path.exists():
            assert server is not None, f"{path} was there a moment ago"
            path.parent.mkdir(parents=True, exist_ok=True)
            execute(with_result(command, server.port, path), sweep.experiment.show_stdout)
            after(sweep, server)
        return with_settings(path, run, serving, load)
    except (ServerError, OSError, ValueError) as e:
        path.unlink(missing_ok=True)
        if not flags.continue_on_error:
            raise ServerError(f"run {run} of {base_name(serving, load)} failed: {e}") from e
        sweep.failures += 1
        failure = path.with_name(path.stem + ".failure.json")
        overrides = {"serve_overrides": serving, "bench_overrides": load}
        write_failure(failure, e, run_number=run, **overrides)
        return None


def base_name(serving: Settings, load: Settings) -> str:
    return " ".join(filter(None, (name_of(serving), name_of(load)))) or "the default settings"


def with_result(command: Sequence[str], port: int, path: Path) -> list[str]:
    """The load command with the server's port and the result path."""
    whole = list(command)
    if option_of(whole, "--port", "--base-url", "--base_url") is None:
        whole += ["--port", str(port)]
    whole += ["--percentile-metrics", _METRICS, "--save-result"]
    return [*whole, "--result-dir", str(path.parent), "--result-filename", path.name]


def execute(command: Sequence[str], show: bool) -> None:
    """Run a command. Raises ServerError if it fails."""
    out = None if show else subprocess.DEVNULL
    code = subprocess.run(command, stdout=out, check=False).returncode
    if code:
        raise ServerError(f"{shlex.join(command)} ended with {code}.")


def after(sweep: Sweep, server: Server) -> None:
    if sweep.flags.after_bench_cmd is None:
        server.clear_caches()
    else:
        execute(command_of(sweep.flags.after_bench_cmd), sweep.experiment.show_stdout)


def medians(records: Sequence[Record], sweep: Sweep) -> list[Record]:
    """One row per combination: its settings, and medians over its runs."""
    names = [*{key: None for s in [*sweep.servers, *sweep.loads] for key in without_name(s)}]
    names = [NAME, *names] if any(NAME in record for record in records) else names
    rows: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        rows.setdefault(tuple(record.get(name) for name in names), []).append(record)
    table = []
    for key, runs in rows.items():
        row: Record = dict(zip(names, key, strict=True))
        for field in _SHOWN:
            if values := numbers(runs, field):
                row[field] = statistics.median(values)
        table.append(row)
    return table
