"""`galley bench sweep`: run servers and loads over lists of settings, and draw what came out.

    galley bench sweep serve --serve-cmd 'galley serve' --bench-cmd 'galley bench serve …' \
        --serve-params '{"max_num_batched_tokens": [256, 2048]}' \
        --bench-params '{"max_concurrency": [1, 8, 32]}'

Every combination of server settings gets a server of its own; each of the load's settings runs
against it `--num-runs` times. Results, one JSON file a run, and `summary.json` lie in the output
folder; a run whose file is there already is left out with --resume. Parameters are JSON, or a file
of it: an object whose lists are multiplied out, or a list of objects.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galley.cli.bench.endpoint import Endpoint
from galley.cli.bench.flags import BenchParser, make
from galley.cli.bench.startup import end, free_port
from galley.cli.bench.tables import print_table
from galley.errors import ConfigError, ServerError

Settings = dict[str, Any]
_SHOWN = ("output_throughput", "median_ttft_ms", "median_itl_ms", "p99_itl_ms")


@dataclass(frozen=True)
class SweepFlags:
    """Sweep"""

    serve_cmd: str = "galley serve"
    """Command of the server; --port is added."""
    bench_cmd: str = "galley bench serve"
    """Command of the load; --port and the result's place are added."""
    serve_params: str = "{}"
    """Server settings: JSON, or a file of it."""
    bench_params: str = "{}"
    """Load settings: JSON, or a file of it."""
    server_ready_timeout: int = 300
    """Seconds that a server gets to answer."""
    output_dir: str = "results"
    """Folder of the results."""
    experiment_name: str | None = None
    """Folder in it; default: the time."""
    num_runs: int = 3
    """Runs of each combination."""
    show_stdout: bool = False
    """Show what servers and loads print."""
    continue_on_error: bool = False
    """Go on where a run fails."""
    dry_run: bool = False
    """Print the commands only."""
    resume: bool = False
    """Leave out runs whose results are there."""


@dataclass(frozen=True)
class PlotFlags:
    """Plot"""

    var_x: str = "output_throughput"
    """Field of the x axis."""
    var_y: str = "median_itl_ms"
    """Field of the y axis; several with commas."""
    curve_by: str | None = None
    """Setting that makes a curve of its own; default: the server's settings."""
    fig_name: str = "FIGURE"
    """Name of the PNG file in the folder."""


def main(argv: list[str]) -> int:
    commands = {"serve": sweep, "plot": plot}
    if not argv or argv[0] not in commands:
        print("usage: galley bench sweep {serve,plot} [options]\n")
        print((__doc__ or "").strip())
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    return commands[argv[0]](argv[1:])


def read_params(text: str, flag: str) -> list[Settings]:
    """JSON or a file of it → the combinations. Raises ConfigError."""
    try:
        if not text.lstrip().startswith(("{", "[")):
            text = Path(text).read_text(encoding="utf-8")
        data = json.loads(text)
    except (OSError, ValueError) as e:
        raise ConfigError(f"--{flag}: {e}.", field=flag) from e
    objects = data if isinstance(data, list) else [data]
    if not objects or not all(isinstance(item, dict) for item in objects):
        raise ConfigError(f"--{flag} takes a JSON object or a list of them.", field=flag)
    return [combination for item in objects for combination in multiply(item)]


def multiply(settings: Settings) -> Iterator[Settings]:
    """{"a": [1, 2], "b": 3} → {"a": 1, "b": 3}, {"a": 2, "b": 3}."""
    lists = [value if isinstance(value, list) else [value] for value in settings.values()]
    for values in itertools.product(*lists):
        yield dict(zip(settings, values, strict=True))


def words(settings: Settings) -> list[str]:
    """Settings as command-line words."""
    found = []
    for name, value in settings.items():
        option = "--" + name.replace("_", "-").lstrip("-")
        if isinstance(value, bool):
            found.append(option if value else option.replace("--", "--no-", 1))
        else:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            found += [option, text]
    return found


def title(settings: Settings) -> str:
    """Settings as part of a file's name."""
    text = "-".join(f"{name}={value}" for name, value in settings.items()) or "default"
    return "".join(c if c.isalnum() or c in "=._-" else "_" for c in text)


def sweep(argv: list[str]) -> int:
    parser = BenchParser(
        "bench sweep serve",
        "Run every combination of server and load settings, and tabulate the results.",
        [SweepFlags],
    )
    flags = make(SweepFlags, parser.read(argv))
    servers = read_params(flags.serve_params, "serve-params")
    loads = read_params(flags.bench_params, "bench-params")
    folder = Path(flags.output_dir) / (flags.experiment_name or time.strftime("%Y%m%d-%H%M%S"))
    if flags.dry_run:
        for server, load in itertools.product(servers, loads):
            print(shlex.join([*shlex.split(flags.serve_cmd), *words(server)]))
            print("  " + shlex.join([*shlex.split(flags.bench_cmd), *words(load)]))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    summary = []
    for server in servers:
        rows, failures = run_server(flags, folder, server, loads)
        summary += rows
        failed += failures
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print_table(f"Medians of {flags.num_runs} runs ({folder})", [shown(row) for row in summary])
    return 1 if failed else 0


def shown(row: Settings) -> Settings:
    settings = {**row["serve"], **row["bench"]}
    return {**settings, **{name: row.get(name) for name in _SHOWN}}


def run_server(
    flags: SweepFlags, folder: Path, server: Settings, loads: Sequence[Settings]
) -> tuple[list[Settings], int]:
    """All loads against one server: a summary row each, and how many runs failed."""
    places = {
        (i, run): folder / f"{title(server)}--{title(load)}--run{run}.json"
        for i, load in enumerate(loads)
        for run in range(flags.num_runs)
    }
    todo = {k: path for k, path in places.items() if not (flags.resume and path.exists())}
    failures = 0
    if todo:
        with served(flags, server) as port:
            for (i, _), path in todo.items():
                failures += not run_load(flags, loads[i], port, path)
    rows = []
    for i, load in enumerate(loads):
        paths = [places[i, run] for run in range(flags.num_runs)]
        results = [json.loads(p.read_text(encoding="utf-8")) for p in paths if p.exists()]
        if results:
            rows.append({"serve": server, "bench": load, "runs": len(results), **medians(results)})
    return rows, failures


def medians(results: Sequence[Settings]) -> Settings:
    """Of the numbers that all results have."""
    names = [k for k, v in results[0].items() if isinstance(v, int | float)]
    return {
        name: statistics.median(result[name] for result in results)
        for name in names
        if all(isinstance(result.get(name), int | float) for result in results)
    }


@contextmanager
def served(flags: SweepFlags, settings: Settings) -> Iterator[int]:
    """A server with these settings; gives its port. Raises ServerError where it never answers."""
    port = free_port()
    command = [*launchable(flags.serve_cmd), *words(settings), "--port", str(port)]
    print(f"galley: {shlex.join(command)}", file=sys.stderr)
    out = None if flags.show_stdout else subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        Endpoint(f"http://127.0.0.1:{port}", {}).served(float(flags.server_ready_timeout))
        yield port
    finally:
        end(process)


def run_load(flags: SweepFlags, settings: Settings, port: int, path: Path) -> bool:
    """One run; whether it succeeded. Raises ServerError without --continue-on-error."""
    command = [*launchable(flags.bench_cmd), *words(settings), "--port", str(port)]
    command += ["--save-result", "--result-dir", str(path.parent), "--result-filename", path.name]
    out = None if flags.show_stdout else subprocess.DEVNULL
    if subprocess.run(command, stdout=out, check=False).returncode == 0:
        return True
    path.unlink(missing_ok=True)
    if not flags.continue_on_error:
        raise ServerError(f"failed: {shlex.join(command)}")
    return False


def launchable(command: str) -> list[str]:
    """A command's words; `galley` is this very installation, whether or not it is on the path."""
    first, *rest = shlex.split(command)
    if os.path.basename(first) == first == "galley":
        return [sys.executable, "-m", "galley", *rest]
    return [first, *rest]


def plot(argv: list[str]) -> int:
    parser = BenchParser(
        "bench sweep plot",
        "Draw the summary of a sweep: fields over a field, a curve for each server setting.",
        [PlotFlags],
        positionals=(("FOLDER", "an experiment's folder, with summary.json"),),
        examples=("galley bench sweep plot results/a --var-x max_concurrency --var-y p99_itl_ms",),
    )
    parsed = parser.parse(argv)
    if not parsed.positionals:
        raise ConfigError("name the experiment's folder.", field="folder")
    folder = Path(parsed.positionals[0])
    flags = make(PlotFlags, parser.split(parsed.values))
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{folder}: no sweep's results ({e}).", field="folder") from e
    fields = [flags.var_x, *flags.var_y.split(",")]
    curves: dict[str, list[Settings]] = {}
    for row in summary:
        flat = {**row["serve"], **row["bench"], **row}
        missing = [name for name in fields if name not in flat]
        if missing:
            raise ConfigError(f"the results have no field {missing[0]!r}.", field="var_x")
        name = str(flat.get(flags.curve_by)) if flags.curve_by else title(row["serve"])
        curves.setdefault(name, []).append(flat)
    from galley.cli.bench.plots import plot_curves

    for rows in curves.values():
        rows.sort(key=lambda flat: float(flat[flags.var_x]))
    path = folder / f"{flags.fig_name}.png"
    plot_curves(curves, flags.var_x, fields[1:], str(path))
    print(path)
    return 0
