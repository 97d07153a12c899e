"""Galley and its peers in one interleaved run.

    LAB=… python -m benchmarks.peers.run [--rows S1,S2,…,S4b,…,S8,S9] [--runs 3] [--out FILE.jsonl]
    LAB=… python -m benchmarks.peers.run --rows L1,L8,LP --models 1b-q4_k_m

Servers that are compared run at the same time (an idle one uses no CPU). For each run and workload
they alternate on the same prompts, so that other load on the machine affects all equally. Prints
the table of goals with medians and the spread of the ratios, each engine's perplexity on the same
text, and start-up times (S8). The rows L1, L8 and LP are of larger models with random weights,
whose files are made when they are first needed. All single runs are written to the JSON-lines file.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.peers import perplexity
from benchmarks.peers.engines import LARGE_MODELS, Server, lab, running
from benchmarks.peers.large import make_files
from benchmarks.peers.offline import run_offline
from benchmarks.peers.starts import run_starts
from benchmarks.peers.table import (
    FRONT_END,
    LARGE,
    OFFLINE,
    ROWS,
    Row,
    Turn,
    front_end_table,
    table,
)
from benchmarks.peers.threads import is_engine
from benchmarks.peers.workloads import WORKLOADS, figures, send
from galley.cli.bench import process
from galley.cli.bench.datasets.text import Corpus, read_text
from galley.text.tokenizer import load_tokenizer

#: Engines whose starts are measured (vLLM's takes a minute: its health check is in `show`).
_STARTS = ["galley-q4_0", "llama-q4_0"]
_ALL = [*ROWS, *OFFLINE, "S8", *FRONT_END]
_LARGE = sorted({row.workload for row in LARGE.values()})


@dataclass
class Bench:
    """One invocation: settings and results."""

    corpus: Corpus
    runs: int
    port: int
    windows: int
    out: Path
    records: dict[Turn, list[dict[str, float]]] = field(default_factory=dict)
    perplexities: dict[str, float] = field(default_factory=dict)

    def serve(self, rows: dict[str, Row], judged: bool = True) -> None:
        """All rows over HTTP, group by group; `judged`: and the engines' perplexities."""
        for turns in groups(rows):
            names = list(dict.fromkeys(engine for engine, _ in turns))
            with running(names, self.port, lab() / "out") as servers:
                by_name = {server.name: server for server in servers}
                for (engine, workload), run in interleave(turns, self.runs):
                    record = measure(by_name[engine], workload, self.corpus, run)
                    self.keep((engine, workload), run, record)
                if judged and self.windows:
                    self.judge(servers)

    def keep(self, turn: Turn, run: int, record: dict[str, float]) -> None:
        self.records.setdefault(turn, []).append(record)
        show(*turn, record)
        with open(self.out, "a", encoding="utf-8") as file:
            line = {"engine": turn[0], "workload": turn[1], "run": run, **record}
            file.write(json.dumps(line) + "\n")

    def judge(self, servers: list[Server]) -> None:
        """Perplexities of these engines."""
        some = perplexity.windows(self.corpus, self.windows)
        for server in servers:
            kind, weights = server.name.split("-", 1)
            if kind == "llama":
                file = f"smollm2-{weights}.gguf"
                value = perplexity.of_llama(file, self.corpus, self.windows)
            else:
                value = perplexity.of_server(server, some)
            self.perplexities[server.name] = value
            print(f"{server.name:<14} perplexity {value:.4f}", flush=True)

    def offline(self) -> None:
        """S4b."""
        row = OFFLINE["S4b"]
        for name, records in run_offline(self.corpus, self.runs).items():
            for run, record in enumerate(records):
                self.keep((name, row.workload), run, record)

    def reference(self) -> None:
        """Measure perplexity of the dequantised weights in float32."""
        some = perplexity.windows(self.corpus, self.windows)
        for weights in ("smollm2-q4_0.gguf", "smollm2-bf16"):
            name = f"float32 of {weights.removeprefix('smollm2-').removesuffix('.gguf')}"
            self.perplexities[name] = perplexity.of_reference(weights, some)


def groups(rows: dict[str, Row]) -> list[list[Turn]]:
    """Group the rows that share a Galley engine."""
    by_engine: dict[str, list[Turn]] = {}
    for row in rows.values():
        by_engine.setdefault(row.mine, []).extend(row.turns)
    return [list(dict.fromkeys(turns)) for turns in by_engine.values()]


def interleave(turns: list[Turn], runs: int) -> Iterator[tuple[Turn, int]]:
    """Each turn once, then each again …"""
    return ((turn, run) for run in range(runs) for turn in turns)


def measure(server: Server, workload: str, corpus: Corpus, run: int) -> dict[str, float]:
    """Run a workload on a server once; record CPU use of the server and of unrelated processes."""
    load = WORKLOADS[workload]
    to = partial(
        send,
        server.base,
        server.engine.model,
        concurrency=load.concurrency,
        tokenizer=corpus.tokenizer if load.as_ids else None,
    )
    if run == 0:
        to(load.warm_up(corpus))
    samples = load.samples(corpus, run)
    members = process.tree(server.process.pid)
    cpu = {pid: process.cpu_seconds(pid) for pid in members}
    busy = process.machine_busy()
    done = to(samples)
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
    """CPU seconds outside the engine: of the processes whose title names neither an engine core
    nor a worker (S9). NaN for servers with a single process (llama-server)."""
    if len(spent) == 1:
        return float("nan")
    return sum(seconds for pid, seconds in spent.items() if not is_engine(pid))


def show(name: str, workload: str, record: dict[str, float]) -> None:
    """Print one run as a line."""
    line = f"{name:<18} {workload:<10} out {record['out_tok_s']:7.1f} tok/s"
    if "ttft_p50_ms" in record:
        line += (
            f"  all {record['total_tok_s']:7.1f}  ttft {record['ttft_p50_ms']:6.0f}/"
            f"{record['ttft_p99_ms']:.0f}  itl {record['itl_p50_ms']:5.1f}/"
            f"{record['itl_p99_ms']:.1f}  e2e {record['e2el_p50_ms']:.0f} ms"
            f"  server {record['server_cpu_s']:.1f}/{record['wall_s']:.1f} s"
            f"  client {record['client_cpu_s']:.2f} s  foreign {record['foreign']:.2f}"
        )
    print(f"{line}  failed {record['failures']:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default=",".join(_ALL))
    parser.add_argument(
        "--models", default=",".join(LARGE_MODELS), help="of the rows L1, L8 and LP"
    )
    parser.add_argument("--without", default="", help="peers to leave out, e.g. llama,openvino")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--port", type=int, default=8301, help="first of the servers' ports")
    parser.add_argument("--perplexity", type=int, default=16, help="windows of text; 0: none")
    parser.add_argument("--out", type=Path, help="default: $LAB/out/peers.jsonl")
    args = parser.parse_args()
    names = args.rows.split(",")
    models = args.models.split(",")
    if unknown := set(names) - {*_ALL, *_LARGE}:
        parser.error(f"no row {unknown.pop()!r}")
    if unknown := set(models) - set(LARGE_MODELS):
        parser.error(f"no model {unknown.pop()!r}; there are {', '.join(LARGE_MODELS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    out = args.out or lab() / "out" / "peers.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(read_text(), load_tokenizer(lab() / "weights" / "smollm2-bf16"))
    bench = Bench(corpus, args.runs, args.port, args.perplexity, out)
    absent = tuple(args.without.split(",")) if args.without else ()
    rows = {name: row.without(absent) for name, row in ROWS.items() if name in names}
    rows = {name: row for name, row in rows.items() if row.theirs}
    front = {name: row for name, row in FRONT_END.items() if name in names}
    chosen = {f"{name} {model}" for name in names if name in _LARGE for model in models}
    large = {name: row.without(absent) for name, row in LARGE.items() if name in chosen}
    if large:
        make_files(models)
        bench.serve(large, judged=False)
    bench.serve({**rows, **front})
    if "S4b" in names:
        bench.offline()
        rows |= OFFLINE
    if args.perplexity and rows:
        bench.reference()
    if rows or large:
        print("\n" + table({**rows, **large}, bench.records))
    if front:
        print("\n" + front_end_table(front, bench.records))
    if bench.perplexities:
        print("\n| engine | perplexity |\n|---|---|")
        for name, value in bench.perplexities.items():
            print(f"| {name} | {value:.3f} |")
    if "S8" in names:
        print("\n" + run_starts(_STARTS, args.runs))


if __name__ == "__main__":
    main()
