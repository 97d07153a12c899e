"""Throughput over HTTP compared with native steps, and a time breakdown of a step.

    LAB=… python -m benchmarks.peers.steps [--rows S1,S2 …] [--runs 3]

An engine core in this process runs a goal's workload with a stop watch around the native calls
alone: tokens over their time is what the steps allow, and beside it what the machine's memory and
arithmetic would allow in the same minute (`watch.py`). The server then gets the same prompts over
HTTP, in turn with the core, run by run. Needs the weights that `setup.sh` makes, no peers.

For the server's steps, the trace (`/start_profile`) gives schedule, execution and commit times; the
kernel gives CPU and wait times of the threads. Only decode steps with all clients are used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims.drive import Engine as Core
from benchmarks.claims.drive import engine as core_of
from benchmarks.claims.drive import jobs
from benchmarks.peers.engines import ENGINES, Server, lab, start, stop
from benchmarks.peers.table import ROWS, Row
from benchmarks.peers.threads import Times, by_role, spent
from benchmarks.peers.watch import StopWatch
from benchmarks.peers.workloads import WORKLOADS, figures, send
from galley.cli.bench import process
from galley.cli.bench.datasets.text import Corpus, read_text
from galley.planning.limits import measure_limits
from galley.text.tokenizer import load_tokenizer

WANTED = 0.85


def native(core: Core, corpus: Corpus, workload: str, run: int) -> tuple[float, float, float]:
    """Output tokens per second: at the machine's limits, as the native steps allow, and of the
    core around them."""
    load = WORKLOADS[workload]
    prompts = [
        corpus.tokenizer.encode(sample.prompt, add_special_tokens=False)
        for sample in load.samples(corpus, run)
    ]
    watch = StopWatch()
    limits = measure_limits(len(os.sched_getaffinity(0)))
    with watch.running():
        wall = core.run(jobs(prompts, load.output), load.concurrency)
    tokens = load.requests * load.output
    return tokens / watch.floor(limits), tokens / watch.seconds, tokens / wall


@dataclass
class GoalResult:
    """Results of one goal: tokens per second per run, and the parts of a step over HTTP in µs."""

    row: Row
    limit: list[float] = field(default_factory=list)
    native: list[float] = field(default_factory=list)
    core: list[float] = field(default_factory=list)
    http: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)


def profiled(name: str, folder: Path) -> Server:
    """The engine with its profiler ready to write to `folder`."""
    config = json.dumps({"profiler": "torch", "torch_profiler_dir": str(folder)})
    engine = ENGINES[name]
    flag = " --profiler-config '" + config.replace("{", "{{").replace("}", "}}") + "'"
    return start(name, replace(engine, command=engine.command + flag), 8391, folder / f"{name}.log")


def ask(server: Server, path: str) -> Any:
    request = urllib.request.Request(server.base + path, b"", method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        body = answer.read()
    return json.loads(body) if body else None


def over_http(server: Server, corpus: Corpus, workload: str, run: int) -> dict[str, Any]:
    """Tokens per second, the CPU share of unrelated processes, and the parts of a step."""
    load = WORKLOADS[workload]
    samples = load.samples(corpus, run)
    if run == 0:
        send(server.base, server.engine.model, load.warm_up(corpus), load.concurrency)
    pids = process.tree(server.process.pid)
    ask(server, "/start_profile")
    before, busy = by_role(pids), process.machine_busy()
    done = send(server.base, server.engine.model, samples, load.concurrency)
    busy = process.machine_busy() - busy
    threads = spent(pids, before)
    [path] = ask(server, "/stop_profile")["files"]
    result = figures(done, samples)
    if result["failures"]:
        raise RuntimeError(f"{result['failures']:.0f} requests failed on {server.name}")
    mine = sum(times.cpu for times in threads.values()) + done.client_cpu
    events = json.loads(Path(path).read_text(encoding="utf-8"))["traceEvents"]
    Path(path).unlink()
    return {
        "out_tok_s": result["out_tok_s"],
        "foreign": max(busy - mine, 0.0) / done.duration,
        "parts": {
            **parts_of_steps(events, load.concurrency),
            **parts_of_threads(threads, done.client_cpu, result["output_tokens"]),
        },
    }


def parts_of_steps(events: Sequence[Mapping[str, Any]], rows: int) -> dict[str, float]:
    """Medians in µs over consecutive decode steps of `rows` rows."""
    steps: list[dict[str, float]] = []
    for event in events:
        if event["ph"] != "X":
            continue
        if event["name"].startswith("step "):
            full = event["args"]["num_rows"] == event["args"]["num_tokens"] == rows
            steps.append({"full": full, "begin": event["ts"], "end": event["ts"] + event["dur"]})
        else:
            steps[-1][event["name"]] = event["dur"]
    pairs = [(a, b) for a, b in pairwise(steps) if a["full"] and b["full"]]
    if not pairs:
        return {}

    def middle(values: Iterator[float]) -> float:
        return float(np.median(list(values)))

    return {
        "step, from one to the next": middle(b["begin"] - a["begin"] for a, b in pairs),
        "· schedule": middle(a["schedule"] for a, _ in pairs),
        "· native call, runner around it": middle(a["execute"] for a, _ in pairs),
        "· commit, outputs": middle(a["commit"] for a, _ in pairs),
        "· send, receive, flight recorder": middle(b["begin"] - a["end"] for a, b in pairs),
    }


def parts_of_threads(
    threads: Mapping[str, Times], client: float, tokens: float
) -> dict[str, float]:
    """Thread times in µs per token."""
    parts = {}
    for name in sorted(threads):
        parts[f"{name}, CPU a token"] = threads[name].cpu / tokens * 1e6
        if name == "front end: main":
            parts[f"{name}, waits for a core, a token"] = threads[name].waiting / tokens * 1e6
    parts["client, CPU a token"] = client / tokens * 1e6
    return parts


def measure(names: Sequence[str], runs: int, corpus: Corpus) -> dict[str, GoalResult]:
    """Measure all goals, engine by engine; core and server alternate."""
    results = {name: GoalResult(ROWS[name]) for name in names}
    for engine in dict.fromkeys(goal.row.mine for goal in results.values()):
        command = ENGINES[engine].command.split()
        weights = next(word for word in command if "{lab}" in word).format(lab=lab())
        server = profiled(engine, lab() / "out")
        try:
            with core_of("server", model=weights) as core:
                for run in range(runs):
                    for goal in results.values():
                        if goal.row.mine == engine:
                            one_turn(goal, core, server, corpus, run)
        finally:
            stop(server.process)
    return results


def one_turn(goal: GoalResult, core: Core, server: Server, corpus: Corpus, run: int) -> None:
    workload = goal.row.workload
    if run == 0:
        load = WORKLOADS[workload]
        ids = [corpus.tokenizer.encode(s.prompt) for s in load.warm_up(corpus)]
        core.run(jobs(ids, 16))
    limit, allowed, around = native(core, corpus, workload, run)
    http = over_http(server, corpus, workload, run)
    goal.limit.append(limit)
    goal.native.append(allowed)
    goal.core.append(around)
    goal.http.append(http["out_tok_s"])
    goal.foreign.append(http["foreign"])
    goal.parts.append(http["parts"])
    print(
        f"{server.name:<12} {workload}  limit {limit:7.1f}  native {allowed:7.1f}  "
        f"core {around:7.1f}  HTTP {http['out_tok_s']:7.1f} tok/s  foreign {http['foreign']:.2f}",
        flush=True,
    )


def share_table(results: Mapping[str, GoalResult]) -> str:
    """Markdown table: medians, and the share per run."""
    lines = [
        "| goal | workload | engine | machine's limit, out tok/s | native steps allow "
        "| engine core alone | over HTTP | share (over the runs) | wanted | foreign CPU |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, goal in results.items():
        shares = [b / a for a, b in zip(goal.native, goal.http, strict=True)]
        nearness = [b / a for a, b in zip(goal.limit, goal.native, strict=True)]
        middle = statistics.median
        lines.append(
            f"| {name} | {goal.row.workload} | {goal.row.mine} | {middle(goal.limit):.0f} "
            f"| {middle(goal.native):.0f} ({middle(nearness):.0%}) "
            f"| {middle(goal.core):.0f} | {middle(goal.http):.0f} | {middle(shares):.0%} "
            f"({min(shares):.0%} to {max(shares):.0%}) | {WANTED:.0%} "
            f"| {middle(goal.foreign):.2f} |"
        )
    return "\n".join(lines)


def part_table(results: Mapping[str, GoalResult]) -> str:
    """Markdown table: medians over the runs, one column per goal."""
    names = list(dict.fromkeys(k for g in results.values() for run in g.parts for k in run))
    heads = [f"{name}: {g.row.workload}, {g.row.mine}" for name, g in results.items()]
    lines = ["| µs | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for name in names:
        cells = []
        for goal in results.values():
            values = [run[name] for run in goal.parts if name in run]
            cells.append(f"{statistics.median(values):,.0f}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    names = args.rows.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"no row {unknown.pop()!r}")
    (lab() / "out").mkdir(parents=True, exist_ok=True)
    corpus = Corpus(read_text(), load_tokenizer(lab() / "weights" / "smollm2-bf16"))
    results = measure(names, args.runs, corpus)
    print("\n" + share_table(results) + "\n\n" + part_table(results))


if __name__ == "__main__":
    main()
