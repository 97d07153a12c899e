"""Galley and its peers in one interleaved run.

    LAB=… python -m benchmarks.peers.run [--rows S1,S2,…] [--runs 3] [--out FILE.jsonl]

Servers that are compared with each other are up at once (an idle one takes no CPU); run by run and
workload by workload each has its turn on the same prompts, so that what the machine does meanwhile
hits all alike. Prints the table of goals with medians and the spread of the ratios; every single
run goes to the JSON-lines file.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.engines import Server, lab, running
from benchmarks.peers.workloads import WORKLOADS, figures, send
from galley.cli.bench import process
from galley.cli.bench.datasets.text import Corpus, read_text
from galley.text.tokenizer import load_tokenizer

Record = dict[str, float]
Turn = tuple[str, str]
"""Engine and workload."""


@dataclass(frozen=True)
class Row:
    """One goal: `mine` against each of `theirs`, by `field`, at least `goal` times the best."""

    workload: str
    mine: str
    theirs: tuple[str, ...]
    goal: float


ROWS = {
    "S1": Row("W1", "galley-q4_0", ("llama-q4_0",), 2.5),
    "S2": Row("W1", "galley-bf16", ("llama-bf16",), 1.4),
    "S3": Row("W4", "galley-bf16", ("vllm-bf16", "llama-bf16"), 1.5),
    "S4a": Row("W4", "galley-w8a8", ("vllm-w8a8",), 1.6),
    "S5": Row("W2", "galley-bf16", ("vllm-bf16",), 1.8),
    "S6": Row("W3", "galley-bf16", ("vllm-bf16", "llama-bf16"), 1.4),
}


def measure(server: Server, workload: str, corpus: Corpus, run: int) -> Record:
    """One run of a workload on a server, with what it and strangers took of the CPU."""
    load = WORKLOADS[workload]
    if run == 0:
        send(server.base, server.engine.model, load.warm_up(corpus), load.concurrency)
    samples = load.samples(corpus, run)
    members = process.tree(server.process.pid)
    cpu = {pid: process.cpu_seconds(pid) for pid in members}
    busy = process.machine_busy()
    done = send(server.base, server.engine.model, samples, load.concurrency)
    busy = process.machine_busy() - busy
    record = figures(done, samples)
    spent = {pid: process.cpu_seconds(pid) - before for pid, before in cpu.items()}
    record["server_cpu_s"] = sum(spent.values())
    record["front_cpu_us_per_token"] = front_cpu(spent) / max(record["output_tokens"], 1) * 1e6
    strangers = busy - record["server_cpu_s"] - record["client_cpu_s"]
    record["foreign"] = max(strangers, 0.0) / record["wall_s"]
    record["pss_mb"] = process.tree_usage(server.process.pid).pss / 1e6
    if record["failures"]:
        reasons = sorted({o.error for o in done.outcomes if o.error})
        print(f"{server.name} {workload}: {reasons[:2]}", file=sys.stderr)
    return record


def front_cpu(spent: dict[int, float]) -> float:
    """CPU seconds outside the engine: all but the process that worked most. With one process
    (llama-server) there is no telling, and the figure is 0."""
    return sum(spent.values()) - max(spent.values())


def show(name: str, workload: str, record: Record) -> None:
    print(
        f"{name:<14} {workload}  out {record['out_tok_s']:7.1f} tok/s"
        f"  all {record['total_tok_s']:7.1f}  ttft {record['ttft_p50_ms']:6.0f}/"
        f"{record['ttft_p99_ms']:.0f}  itl {record['itl_p50_ms']:5.1f}/{record['itl_p99_ms']:.1f}"
        f"  e2e {record['e2el_p50_ms']:.0f} ms  server {record['server_cpu_s']:.1f}"
        f"/{record['wall_s']:.1f} s  client {record['client_cpu_s']:.2f} s"
        f"  foreign {record['foreign']:.2f}  failed {record['failures']:.0f}",
        flush=True,
    )


def table(rows: dict[str, Row], records: dict[Turn, list[Record]]) -> str:
    """Markdown: medians of the runs, and ratios to the best peer run by run."""
    lines = [
        "| goal | workload | engine | out tok/s | TTFT p50/p99 ms | ITL p50/p99 ms | failed "
        "| foreign CPU | ratio (over the runs) | goal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        for engine in (row.mine, *row.theirs):
            runs = records[engine, row.workload]
            ratio = goal = ""
            if engine != row.mine:
                mine = records[row.mine, row.workload]
                each = [a["out_tok_s"] / b["out_tok_s"] for a, b in zip(mine, runs, strict=True)]
                ratio = f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
                goal = f"{row.goal} ×"

            def mid(field: str, runs: list[Record] = runs) -> float:
                return statistics.median(run[field] for run in runs)

            lines.append(
                f"| {name} | {row.workload} | {engine} | {mid('out_tok_s'):.0f} "
                f"| {mid('ttft_p50_ms'):.0f} / {mid('ttft_p99_ms'):.0f} "
                f"| {mid('itl_p50_ms'):.1f} / {mid('itl_p99_ms'):.1f} "
                f"| {sum(run['failures'] for run in runs):.0f} | {mid('foreign'):.2f} "
                f"| {ratio} | {goal} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--port", type=int, default=8301, help="first of the servers' ports")
    parser.add_argument("--out", type=Path, help="default: $LAB/out/peers.jsonl")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    rows = {name: ROWS[name] for name in args.rows.split(",")}
    out = args.out or lab() / "out" / "peers.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(read_text(), load_tokenizer(lab() / "weights" / "smollm2-bf16"))
    records: dict[Turn, list[Record]] = {}
    with open(out, "a") as file:
        for turns in groups(rows):
            for (engine, workload), run, record in interleave(turns, args.runs, args.port, corpus):
                records.setdefault((engine, workload), []).append(record)
                show(engine, workload, record)
                line = {"engine": engine, "workload": workload, "run": run, **record}
                file.write(json.dumps(line) + "\n")
                file.flush()
    print("\n" + table(rows, records))


def groups(rows: dict[str, Row]) -> list[list[Turn]]:
    """The turns of the rows, those together whose rows share an engine of ours."""
    by_engine: dict[str, list[Turn]] = {}
    for row in rows.values():
        turns = by_engine.setdefault(row.mine, [])
        turns += [(engine, row.workload) for engine in (row.mine, *row.theirs)]
    return [list(dict.fromkeys(turns)) for turns in by_engine.values()]


def interleave(
    turns: list[Turn], runs: int, port: int, corpus: Corpus
) -> Iterator[tuple[Turn, int, Record]]:
    """Start the engines of these turns, let each turn have its run, `runs` times over."""
    names = list(dict.fromkeys(engine for engine, _ in turns))
    with running(names, port, lab() / "out") as servers:
        by_name = {server.name: server for server in servers}
        for run in range(runs):
            for engine, workload in turns:
                yield (engine, workload), run, measure(by_name[engine], workload, corpus, run)


if __name__ == "__main__":
    main()
