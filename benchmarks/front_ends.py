"""Compares numbers of front ends (`--api-server-count`) with many small streams.

    python -m benchmarks.front_ends [--counts 1 2 4] [--streams 256] [--tokens 16] [--rounds 3]

Checklist 147: the front end is the bottleneck. The model is random and tiny, so that parsing,
detokenising and sending take most of the time. All streams are opened at once, one connection
each. Counts alternate, and the best round of each is reported, because disturbances only slow a
round down.

Reports for each count: streams and tokens per second, the mean time to the first token, and CPU
time per token of the front ends and of the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import tiny
from benchmarks.clients import Answer, stream
from benchmarks.served import Server, serve

PROMPT = "Tell me in a few words how the light of a lamp comes back from paper, number {}."
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Round:
    """Figures of one burst of streams.

    Attributes:
        front, engine: µs of CPU time per token.
    """

    streams_per_second: float
    tokens_per_second: float
    ttft_ms: float
    front: float
    engine: float


def cpu_seconds(server: Server, title: str) -> float:
    """CPU seconds of the server's processes whose titles contain `title`."""
    total = 0
    for pid in server.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if title in words:
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


async def burst(port: int, count: int, tokens: int, begin: int) -> list[Answer]:
    """Run streams concurrently, all with different prompts."""
    return list(
        await asyncio.gather(
            *(
                stream(
                    port,
                    {
                        "model": tiny.NAME,
                        "prompt": PROMPT.format(begin + i),
                        "max_tokens": tokens,
                        "temperature": 0,
                        "ignore_eos": True,
                    },
                )
                for i in range(count)
            )
        )
    )


def play(server: Server, count: int, tokens: int, begin: int) -> Round:
    """Measure one burst. Raises RuntimeError if a stream lacks tokens."""
    titles = ("Galley::APIServer", "Galley::EngineCore")
    before = [cpu_seconds(server, title) for title in titles]
    start = time.monotonic()
    answers = asyncio.run(burst(server.port, count, tokens, begin))
    seconds = time.monotonic() - start
    wrong = [a for a in answers if a.status != 200 or a.finish != "length"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} streams were cut short: {wrong[0]}")
    made = count * tokens
    spent = [cpu_seconds(server, t) - b for t, b in zip(titles, before, strict=True)]
    front, engine = (1e6 * s / made for s in spent)
    return Round(
        streams_per_second=count / seconds,
        tokens_per_second=made / seconds,
        ttft_ms=1000 * sum(a.ttft for a in answers) / count,
        front=front,
        engine=engine,
    )


def measure(counts: list[int], streams: int, tokens: int, rounds: int) -> dict[int, Round]:
    """The best round of each count of front ends."""
    best: dict[int, Round] = {}
    with tempfile.TemporaryDirectory() as folder:
        # A model length for which all streams fit at once.
        flags = (*tiny.flags(Path(folder)), "--max-num-seqs", str(streams))
        flags += ("--disable-uvicorn-access-log", "--kv-cache-memory-bytes", "256M")
        for turn in range(rounds):
            for count in counts:
                with serve(*flags, "--api-server-count", str(count)) as server:
                    play(server, streams, tokens, 0)
                    for again in range(2):
                        got = play(server, streams, tokens, (again + 1) * streams)
                        known = best.get(count)
                        if known is None or got.tokens_per_second > known.tokens_per_second:
                            best[count] = got
            print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return best


def table(best: dict[int, Round]) -> str:
    lines = [
        "| front ends | streams/s | tokens/s | first token, mean | CPU a token, front | engine |",
        "|---|---|---|---|---|---|",
    ]
    for count, r in sorted(best.items()):
        lines.append(
            f"| {count} | {r.streams_per_second:.0f} | {r.tokens_per_second:,.0f} | "
            f"{r.ttft_ms:.0f} ms | {r.front:.0f} µs | {r.engine:.0f} µs |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file for the figures")
    args = parser.parse_args()
    best = measure(args.counts, args.streams, args.tokens, args.rounds)
    print(table(best))
    if args.json:
        Path(args.json).write_text(json.dumps({n: asdict(r) for n, r in best.items()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
