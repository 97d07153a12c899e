"""Markdown table of goals and measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.peers.engines import LARGE_MODELS

Record = Mapping[str, float]
Turn = tuple[str, str]
"""Engine and workload."""


@dataclass(frozen=True)
class Row:
    """One goal: `mine` reaches `goal` times the output tokens per second of each of `theirs`, where
    nothing else is said."""

    workload: str
    mine: str
    theirs: tuple[str, ...]
    goal: float

    @property
    def turns(self) -> list[Turn]:
        return [(engine, self.workload) for engine in (self.mine, *self.theirs)]

    def without(self, peers: tuple[str, ...]) -> Row:
        """The same beside fewer engines."""
        theirs = tuple(name for name in self.theirs if not name.startswith(peers))
        return replace(self, theirs=theirs)


ROWS = {
    "S1": Row("W1", "galley-q4_0", ("llama-q4_0",), 2.5),
    "S2": Row("W1", "galley-bf16", ("llama-bf16",), 1.4),
    "S3": Row("W4", "galley-bf16", ("vllm-bf16", "llama-bf16"), 1.5),
    "S4a": Row("W4", "galley-w8a8", ("vllm-w8a8",), 1.6),
    "S4c": Row("W1", "galley-w8a8", ("vllm-w8a8",), 1.4),
    "S4d": Row("W4", "galley-w4a16", ("vllm-w4a16",), 1.4),
    "S4e": Row("W1", "galley-w4a16", ("vllm-w4a16",), 1.4),
    "S5": Row("W2", "galley-bf16", ("vllm-bf16",), 1.8),
    "S6": Row("W3", "galley-bf16", ("vllm-bf16", "llama-bf16"), 1.4),
}
#: Models of random weights (`large.py`), each beside those that can run it.
LARGE = {
    f"{workload} {model}": Row(
        workload,
        f"galley-{model}",
        (f"llama-{model}", *((f"vllm-{model}",) if model.endswith("bf16") else ())),
        goal,
    )
    for model in LARGE_MODELS
    for workload, goal in (("L1", 1.1), ("L8", 2.2), ("LP", 2.0))
}
#: Without HTTP (`offline.py`).
OFFLINE = {"S4b": Row("W4 offline", "galley-q4_0 (LLM)", ("openvino-q4_0",), 1.6)}
#: CPU time of the front end for a streamed token: at most `goal` times that of each of `theirs`.
FRONT_END = {"S9": Row("W4", "galley-bf16", ("vllm-bf16",), 1 / 3)}

_COLUMNS = (
    "| goal | workload | engine | out tok/s | TTFT p50 / p99 ms | ITL p50 / p99 ms "
    "| front-end CPU µs per token | foreign CPU | failed | ratio (over the runs) | TTFT ratio "
    "| goal |"
)


def median(runs: Sequence[Record], field: str) -> float:
    """Median over the runs; NaN if they lack the field."""
    return statistics.median(run.get(field, math.nan) for run in runs)


def pair(runs: Sequence[Record], metric: str, digits: int) -> str:
    middle, worst = (median(runs, f"{metric}_{p}_ms") for p in ("p50", "p99"))
    return "" if math.isnan(middle) else f"{middle:.{digits}f} / {worst:.{digits}f}"


def number(value: float, digits: int = 0) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def ratios(mine: Sequence[Record], theirs: Sequence[Record], field: str) -> str:
    """Ratio of mine to theirs per run: median and spread."""
    pairs = zip(mine, theirs, strict=True)
    each = [a[field] / b[field] for a, b in pairs if field in a and field in b]
    each = [ratio for ratio in each if not math.isnan(ratio)]
    if not each:
        return ""
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def table(rows: Mapping[str, Row], records: Mapping[Turn, Sequence[Record]]) -> str:
    """Medians of the runs. Ratios are per run; a TTFT ratio below 1 favours Galley."""
    lines = [_COLUMNS, "|" + "---|" * (_COLUMNS.count("|") - 1)]
    for name, row in rows.items():
        mine = records[row.turns[0]]
        for turn in row.turns:
            runs = records[turn]
            ours = turn[0] == row.mine
            cells = [
                name,
                row.workload,
                turn[0],
                number(median(runs, "out_tok_s")),
                pair(runs, "ttft", 0),
                pair(runs, "itl", 1),
                number(median(runs, "front_cpu_us_per_token")),
                number(median(runs, "foreign"), 2),
                number(sum(run["failures"] for run in runs)),
                "" if ours else ratios(mine, runs, "out_tok_s"),
                "" if ours else ratios(mine, runs, "ttft_p50_ms"),
                "" if ours else f"{row.goal} ×",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def front_end_table(rows: Mapping[str, Row], records: Mapping[Turn, Sequence[Record]]) -> str:
    """CPU time of all processes of a server but its engines (/proc/PID/stat), by streamed token."""
    lines = [
        "| goal | workload | engine | front-end CPU, µs a token | ratio (over the runs) | goal |",
        "|---|---|---|---|---|---|",
    ]
    field = "front_cpu_us_per_token"
    for name, row in rows.items():
        mine = records[row.turns[0]]
        for turn in row.turns:
            runs = records[turn]
            theirs = turn[0] != row.mine
            ratio = ratios(mine, runs, field) if theirs else ""
            goal = f"{row.goal:.2f} ×" if theirs else ""
            cells = [name, row.workload, turn[0], number(median(runs, field)), ratio, goal]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
