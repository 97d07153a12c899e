"""Soak test: saturates a server with misbehaving clients to find leaks.

    python -m benchmarks.soak [--minutes 20] [--clients 24] [--settle 5] [--model M] [--json FILE]

Keeps a small server saturated with completions and chats of all sizes. Half of the clients behave;
the others disconnect before the first token or in mid-stream, or read slowly. Fails if, after
`--settle` minutes, the memory of all processes grows by more than `--slope` MB per minute, if a
request or KV block remains or a finish is missing at the end, or if the log contains an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.clients import CHAT, COMPLETIONS, Answer, stream
from benchmarks.served import MODEL, Server, serve

#: Few blocks and slots, so that there is always a queue and sometimes a preemption.
FLAGS = ("--max-num-seqs", "12", "--num-gpu-blocks-override", "160", "--max-model-len", "1024")
#: Seconds after which a request counts as lost.
PATIENCE = 180
WORDS = [
    "the",
    "light",
    "of",
    "a",
    "lamp",
    "falls",
    "on",
    "white",
    "paper",
    "and",
    "some",
    "of",
    "it",
    "comes",
    "back",
    "to",
    "the",
    "eye",
]


@dataclass
class Soak:
    """Results of the run.

    Attributes:
        ends: answers by kind of client.
        paths: answers by route.
    """

    ends: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, float]] = field(default_factory=list)  # minutes, MB
    faults: list[str] = field(default_factory=list)

    def slope(self, after: float) -> float:
        """MB a minute of a straight line through the samples after so many minutes."""
        points = [(t, mb) for t, mb in self.samples if t >= after]
        if len(points) < 2:
            return 0.0
        mean_t = sum(t for t, _ in points) / len(points)
        mean_m = sum(m for _, m in points) / len(points)
        spread = sum((t - mean_t) ** 2 for t, _ in points)
        return sum((t - mean_t) * (m - mean_m) for t, m in points) / spread


def body(rng: random.Random) -> dict[str, Any]:
    """A request of random size; some share a prefix."""
    common = "Once more, in short words: " * rng.choice((0, 0, 4, 12))
    prompt = common + " ".join(rng.choices(WORDS, k=rng.choice((4, 20, 80, 300))))
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": rng.choice((1, 8, 32, 128, 256)),
        "temperature": rng.choice((0.0, 1.0)),
        "n": rng.choice((1, 1, 1, 2)),
        "ignore_eos": True,
        **({"logprobs": 2} if rng.random() < 0.1 else {}),
        **({"stop": ["light"]} if rng.random() < 0.2 else {}),
    }


def talk(rng: random.Random) -> dict[str, Any]:
    """A chat of random size; the first turns are common to many chats."""
    request = body(rng)
    words = request.pop("prompt").split()
    turns = rng.choice((1, 1, 3, 5))
    size = max(len(words) // turns, 1)
    texts = [" ".join(words[i * size : (i + 1) * size]) or "More?" for i in range(turns)]
    roles = ("user", "assistant", "user", "assistant", "user")
    messages = [{"role": r, "content": text} for r, text in zip(roles, texts, strict=False)]
    if rng.random() < 0.5:
        messages.insert(0, {"role": "system", "content": "You speak of light. " * 10})
    if "logprobs" in request:
        request |= {"logprobs": True, "top_logprobs": 2}
    return {**request, "messages": messages, "stream_options": {"include_usage": True}}


async def client(port: int, seed: int, until: float, soak: Soak) -> None:
    """Run clients one after another."""
    rng = random.Random(seed)
    while time.monotonic() < until:
        kind = rng.choices(("good", "early", "middle", "slow", "wrong"), (10, 3, 4, 2, 1))[0]
        path = rng.choice((COMPLETIONS, CHAT))
        request = talk(rng) if path == CHAT else body(rng)
        if kind == "wrong":
            request["max_tokens"] = -1
        elif kind == "slow":  # three seconds at most, for which the end of the run waits
            request["max_tokens"] = min(request["max_tokens"], 64)
        try:
            answer = await asyncio.wait_for(
                stream(
                    port,
                    request,
                    leave_after={"early": 0, "middle": rng.randint(1, 40)}.get(kind),
                    pause=0.05 if kind == "slow" else 0.0,
                    path=path,
                ),
                PATIENCE,
            )
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as e:
            soak.faults.append(f"{kind} at {path}: {e!r}")
            continue
        soak.ends[kind] += 1
        soak.paths[path] += 1
        _judge(kind, answer, soak)


def _judge(kind: str, answer: Answer, soak: Soak) -> None:
    if kind == "wrong":
        if answer.status != 400:
            soak.faults.append(f"a wrong request got {answer.status}")
    elif kind in ("good", "slow") and answer.finish not in ("stop", "length"):
        soak.faults.append(f"{kind}: status {answer.status}, {answer.finish}, {answer.error}")
    elif answer.error:
        soak.faults.append(f"{kind}: {answer.error}")


async def _watch(server: Server, begin: float, until: float, soak: Soak) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(5)
        soak.samples.append(((time.monotonic() - begin) / 60, server.resident()))


async def _run(server: Server, args: argparse.Namespace, soak: Soak) -> None:
    begin = time.monotonic()
    until = begin + args.minutes * 60
    await asyncio.gather(
        _watch(server, begin, until, soak),
        *(client(server.port, seed, until, soak) for seed in range(args.clients)),
    )


def check_end(server: Server, soak: Soak) -> dict[str, float]:
    """Check that no request or block remains, and that the server's counters agree."""
    try:
        metrics = server.wait_idle()
    except OSError as e:
        soak.faults += [f"the server is gone: {e}", *server.log[-20:]]
        return {}
    left = {
        name: metrics.sum("vllm:" + name)
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    }
    soak.faults += [f"{name} is {value} at the end" for name, value in left.items() if value]
    ends = {
        reason: metrics.sum("vllm:request_success_total", finished_reason=reason)
        for reason in ("stop", "length", "abort", "error")
    }
    if ends["error"]:
        soak.faults.append(f"{ends['error']:.0f} requests ended in an error")
    if not ends["abort"]:
        soak.faults.append("no request was aborted: the clients that left were not noticed")
    preemptions = metrics.sum("vllm:num_preemptions_total")
    return {**ends, "preemptions": preemptions}


def check_log(server: Server, soak: Soak) -> None:
    bad = [line for line in server.log if "ERROR" in line or "Traceback" in line]
    soak.faults += [f"log: {line.strip()}" for line in bad[:5]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--settle", type=float, default=None, help="default 5, or half the time")
    parser.add_argument("--slope", type=float, default=1.0, help="most MB a minute")
    parser.add_argument("--model", default="", help="default: the built-in one")
    parser.add_argument("--json", help="file for the figures")
    args = parser.parse_args()
    settle = min(5.0, args.minutes / 2) if args.settle is None else args.settle
    soak = Soak()
    model = ("--model", args.model, "--served-model-name", MODEL) if args.model else ()
    with serve(*model, *FLAGS, "--disable-uvicorn-access-log") as server:
        asyncio.run(_run(server, args, soak))
        ends = check_end(server, soak)
    check_log(server, soak)
    slope = soak.slope(settle)
    if slope > args.slope:
        soak.faults.append(f"memory grows by {slope:.2f} MB a minute")
    figures = {
        "minutes": args.minutes,
        "clients": dict(soak.ends),
        "paths": dict(soak.paths),
        "ends": ends,
        "first_mb": soak.samples[0][1],
        "last_mb": soak.samples[-1][1],
        "slope_mb_per_minute": round(slope, 3),
        "faults": soak.faults[:20],
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({**figures, "samples": soak.samples}, f)
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
