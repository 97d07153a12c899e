"""`galley trace`: where the time of a recorded run went."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galley.cli.parser import CommandParser, make
from galley.errors import ConfigError

if TYPE_CHECKING:
    from galley.observability.trace_summary import Share, TraceSummary


@dataclass(frozen=True)
class TraceFlags:
    """Output"""

    slowest: int = 5
    """How many of the slowest steps are listed."""
    json: bool = False
    """Print JSON."""


def parser() -> CommandParser:
    return CommandParser(
        "trace",
        "Summarise a trace of steps: time by part and by kind of step, the slowest steps, queue "
        "and blocks. Traces are written by /stop_profile (--profiler-config); Perfetto opens them.",
        [TraceFlags],
        positionals=(("FILE", "a trace in Chrome's format"),),
        examples=("galley trace galley-4711.json", "galley trace galley-4711.json --json"),
    )


def main(argv: list[str]) -> int:
    of = parser()
    parsed = of.parse(argv)
    flags = make(TraceFlags, of.split(parsed.values))
    if len(parsed.positionals) != 1:
        raise ConfigError("`galley trace` needs a FILE.", field="file")
    if flags.slowest < 0:
        raise ConfigError("--slowest must not be negative.", field="slowest")
    import msgspec

    from galley.observability.trace_summary import read_trace, summarize

    found = summarize(read_trace(Path(parsed.positionals[0])), flags.slowest)
    if flags.json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        show(found)
    return 0


def show(found: TraceSummary) -> None:
    """Print a summary as text."""
    from galley.cli.bench.tables import print_table

    rate = found.tokens / found.seconds if found.seconds else 0.0
    print(
        f"{found.steps:,} steps in {found.seconds:.3f} s: {found.tokens:,} tokens computed "
        f"({rate:,.0f} a second), {found.started:,} requests begun and {found.ended:,} ended, "
        f"{found.preemptions:,} preemptions."
    )
    print(
        f"At most {found.running:,} running and {found.waiting:,} waiting; at least "
        f"{found.free_blocks:,} free blocks.\n"
    )
    parts = [{"part, ms": name, **_columns(share)} for name, share in found.parts.items()]
    print_table("Time by part of a step", parts)
    kinds = [
        {"steps of, ms": name, **_columns(kind.time), "tokens": kind.tokens, "tokens/s": kind.rate}
        for name, kind in found.kinds.items()
    ]
    print()
    print_table("Time by kind of step", kinds)
    if found.slowest:
        print()
        slowest = [
            {"step": step, "ms": lasted, "rows": rows, "tokens": tokens}
            for step, lasted, rows, tokens in found.slowest
        ]
        print_table("Slowest steps", slowest)


def _columns(share: Share) -> dict[str, Any]:
    return {
        "count": share.count,
        "total": share.total,
        "% of the run": 100 * share.share,
        "mean": share.mean,
        "p50": share.p50,
        "p99": share.p99,
        "longest": share.longest,
    }
