"""Chaos test: kills the engine repeatedly and checks that clients get unchanged answers.

    python -m benchmarks.chaos [MODEL] [--minutes 10] [--streams 32] [--every 15] [--json FILE]
                               [--seed 0] [-- FLAG …]        flags of galley serve

First, each request of a pool is answered without faults. Then --streams clients send random
requests of the pool while the engine is killed (SIGKILL) at a random time in each interval. The
second kill hits a prefill as long as the model allows (up to 8,000 tokens); the third is followed
by another during start-up. Half of the requests are sampled; some have logprobs, n=2, stop strings
or penalties.

Fails if a request fails, if an answer differs from the fault-free one, if a counter decreases, or
if requests, KV blocks or processes remain at the end. Reports restart times and client pauses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.served import ROOT, Metrics, Server, serve

TEXT = (ROOT / "tests" / "data" / "opticks.txt").read_text()
POOL = 64
LONG_TOKENS = 8000
#: Seconds without any event after which a request counts as lost.
PATIENCE = 120


@dataclass
class Answer:
    """Answer as received by a client: content to compare, and arrival times."""

    texts: dict[int, str] = field(default_factory=dict)
    ends: dict[int, tuple[str | None, Any]] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    usage: tuple[int, int] | None = None
    times: list[float] = field(default_factory=list)

    @property
    def content(self) -> tuple[Any, ...]:
        return self.texts, self.ends, self.logprobs, self.usage

    def take(self, event: dict[str, Any]) -> None:
        self.times.append(time.monotonic())
        if "error" in event:
            raise Broken(f"an error instead of an answer: {event['error']}")
        for choice in event["choices"]:
            i = choice["index"]
            if self.ends.get(i, (None, None))[0] is not None:
                raise Broken("something came after the end")
            self.texts[i] = self.texts.get(i, "") + choice["text"]
            self.ends[i] = choice["finish_reason"], choice.get("stop_reason")
            if choice.get("logprobs"):
                self.logprobs.setdefault(i, []).extend(choice["logprobs"]["token_logprobs"])
        if event.get("usage"):
            usage = event["usage"]
            self.usage = usage["prompt_tokens"], usage["completion_tokens"]

    def finish(self) -> Answer:
        """Raises Broken unless all of it has come."""
        if self.usage is None or any(reason is None for reason, _ in self.ends.values()):
            raise Broken("the stream ended before its request")
        return self


class Broken(Exception):
    """A guarantee was violated."""


@dataclass
class Outcome:
    """Results of the run. `pauses` are gaps of requests in flight during a kill, in seconds."""

    kills: list[float] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    next_tokens: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    longest_gap: float = 0.0
    num_requests: int = 0
    num_disturbed: int = 0
    num_tokens: int = 0
    faults: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------- requests


def make_pool(rng: random.Random, length: int) -> list[dict[str, Any]]:
    """Requests that cover the features a replay could get wrong.

    Args:
        length: maximum tokens of one sequence.
    """
    pool = []
    for i in range(POOL):
        start = rng.randrange(len(TEXT) - 6000)
        size = min(rng.choice((20, 80, 300, 1200, 3000)), length)
        body: dict[str, Any] = {
            "prompt": TEXT[start : start + size],
            "max_tokens": min(rng.randint(16, 200), length // 4),
            "temperature": 0.0,
            "ignore_eos": i % 4 != 3,
        }
        if i % 2:
            body |= {"temperature": rng.choice((0.7, 1.0)), "seed": rng.randrange(2**31)}
            body |= rng.choice(({}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05}))
        if i % 5 == 0:
            body["logprobs"] = rng.randint(0, 3)
        if i % 7 == 0:
            body |= {"n": 2, "temperature": 1.0, "seed": rng.randrange(2**31)}
        if i % 6 == 0:
            body["stop"] = [" the of", "\n\n\n", rng.choice((" light", " ray", "."))]
        if i % 8 == 0:
            body |= {"repetition_penalty": 1.2, "presence_penalty": 0.3}
        if i % 9 == 0:
            body["min_tokens"] = body["max_tokens"] // 2
        pool.append(body)
    return pool


def long_request(server: Server, length: int) -> dict[str, Any]:
    """A prompt of as many tokens as the model allows, up to LONG_TOKENS."""
    ids = post(server, "/tokenize", {"prompt": TEXT[:40_000]})["tokens"]
    count = min(LONG_TOKENS, length - 40)
    while len(ids) < count:
        ids = ids + ids
    return {"prompt": ids[:count], "max_tokens": 32, "temperature": 0.0, "ignore_eos": True}


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    import urllib.request

    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return json.load(reply)


async def ask(server: Server, body: dict[str, Any]) -> Answer:
    """Stream one request. Raises Broken, or TimeoutError after PATIENCE seconds without data."""
    answer = Answer(times=[time.monotonic()])
    async for event in events(server.port, body):
        answer.take(event)
    return answer.finish()


async def events(port: int, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    payload = json.dumps({"stream": True, "stream_options": {"include_usage": True}, **body})
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload.encode())}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        writer.write(head.encode() + payload.encode())
        status = (await reader.readline()).split(b" ", 2)[1:2]
        if status != [b"200"]:
            raise Broken(f"status {status}: {(await reader.read(2000)).decode(errors='replace')}")
        while line := await asyncio.wait_for(reader.readline(), PATIENCE):
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
    finally:
        writer.close()


# ---------------------------------------------------------------------- kills


def engine_pid(server: Server) -> int | None:
    try:
        for pid in server.pids()[1:]:
            if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    except OSError:
        pass  # one of them has just died
    return None


async def next_engine(server: Server, old: int | None) -> int:
    """Wait for the engine that replaces `old`, and return its pid."""
    end = time.monotonic() + PATIENCE
    while (pid := engine_pid(server)) in (None, old):
        if time.monotonic() > end:
            raise Broken(f"no engine was started for {PATIENCE} s")
        await asyncio.sleep(0.005)
    assert pid is not None
    return pid


async def wait_healthy(server: Server) -> None:
    end = time.monotonic() + PATIENCE
    while await asyncio.to_thread(server.status, "/health") != 200:
        if time.monotonic() > end:
            raise Broken(f"/health was not 200 for {PATIENCE} s")
        await asyncio.sleep(0.005)


class Killer:
    """Kills the engine at a random time in each interval."""

    def __init__(self, server: Server, every: float, rng: random.Random, outcome: Outcome) -> None:
        self._server = server
        self._every = every
        self._rng = rng
        self._outcome = outcome
        self.long: asyncio.Event = asyncio.Event()

    async def run(self, until: float) -> None:
        start, rounds = time.monotonic(), 0
        while time.monotonic() < until:
            wait = start + (rounds + self._rng.random()) * self._every - time.monotonic()
            await asyncio.sleep(max(wait, 0.0))
            if time.monotonic() > until:
                return
            rounds += 1
            if rounds == 2:
                # Send the long prompt, and kill the engine during its prefill.
                self.long.set()
                await asyncio.sleep(self._rng.uniform(0.3, 1.0))
            await self._kill(also_in_start_up=rounds == 3)

    async def _kill(self, also_in_start_up: bool) -> None:
        server, kills = self._server, self._outcome.kills
        pid = await next_engine(server, None)
        for again in (False, True)[: 1 + also_in_start_up]:
            if again:
                await asyncio.sleep(self._rng.uniform(0.02, 0.15))
            os.kill(pid, signal.SIGKILL)
            kills.append(time.monotonic())
            pid = await next_engine(server, pid)
        await wait_healthy(server)
        self._outcome.restarts.append(time.monotonic() - kills[-1])


# ---------------------------------------------------------------------- the run


class Run:
    """Streams random requests of the pool and compares the answers."""

    def __init__(self, server: Server, pool: list[dict[str, Any]], outcome: Outcome) -> None:
        self.server = server
        self.pool = pool
        self.outcome = outcome
        self.expected: list[Any] = []
        self.events: list[float] = []

    async def learn(self, streams: int) -> None:
        """Record the fault-free answers."""
        gate = asyncio.Semaphore(streams)

        async def one(body: dict[str, Any]) -> Any:
            async with gate:
                return (await ask(self.server, body)).content

        self.expected = await asyncio.gather(*(one(body) for body in self.pool))

    async def one(self, number: int) -> None:
        """Send a request, compare the answer, and record the pauses."""
        outcome = self.outcome
        outcome.num_requests += 1
        try:
            # A cache salt prevents prefix cache hits, so that the long prompt and half of the
            # others are computed.
            salted = number == POOL or outcome.num_requests % 2
            salt = {"cache_salt": f"chaos {outcome.num_requests}"} if salted else {}
            answer = await ask(self.server, self.pool[number] | salt)
        except (Broken, OSError, TimeoutError) as e:
            outcome.faults.append(f"request {number}: {type(e).__name__}: {e}")
            return
        if answer.content != self.expected[number]:
            outcome.faults.append(f"request {number}: {answer.content} != {self.expected[number]}")
        assert answer.usage is not None
        outcome.num_tokens += answer.usage[1]
        self.events += answer.times[1:]
        gaps = [b - a for a, b in zip(answer.times, answer.times[1:], strict=False)]
        outcome.longest_gap = max(outcome.longest_gap, *gaps)
        for killed in outcome.kills:
            spans = [
                b - a
                for a, b in zip(answer.times, answer.times[1:], strict=False)
                if a < killed < b
            ]
            outcome.pauses += spans
            outcome.num_disturbed += bool(spans)

    async def stream(self, until: float, rng: random.Random) -> None:
        while time.monotonic() < until:
            await self.one(rng.randrange(POOL))

    async def watch_counters(self, until: float) -> None:
        """Check that no counter decreases."""
        before: dict[Any, float] = {}
        while time.monotonic() < until:
            now = counters(Metrics(await asyncio.to_thread(self.server.get, "/metrics")))
            for key, value in now.items():
                if value < before.get(key, 0.0):
                    self.outcome.faults.append(f"{key} went back from {before[key]} to {value}")
            before = now
            await asyncio.sleep(1.0)


def counters(metrics: Metrics) -> dict[Any, float]:
    ends = ("_total", "_count", "_bucket", "_sum")
    return {
        (name, *sorted(labels.items())): value
        for name, labels, value in metrics.samples
        if name.startswith(("vllm:", "galley:")) and name.endswith(ends)
    }


async def chaos(server: Server, options: argparse.Namespace, outcome: Outcome) -> None:
    rng = random.Random(options.seed)
    length = json.loads(server.get("/v1/models"))["data"][0]["max_model_len"]
    run = Run(server, [*make_pool(rng, length), long_request(server, length)], outcome)
    began = time.monotonic()
    await run.learn(options.streams)
    print(f"undisturbed: {len(run.pool)} requests, {time.monotonic() - began:.1f} s", flush=True)

    until = time.monotonic() + 60 * options.minutes
    killer = Killer(server, options.every, rng, outcome)

    async def long_one() -> None:
        await killer.long.wait()
        await run.one(POOL)

    long_task = asyncio.create_task(long_one())
    await asyncio.gather(
        killer.run(until),
        run.watch_counters(until),
        *(run.stream(until, random.Random(options.seed + i)) for i in range(options.streams)),
    )
    killer.long.set()
    await long_task
    for killed in outcome.kills:
        later = [t for t in run.events if t > killed]
        if later:
            outcome.next_tokens.append(min(later) - killed)


def check_the_end(server: Server, outcome: Outcome) -> None:
    metrics = server.wait_idle()
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
        if metrics.sum(name):
            outcome.faults.append(f"{name} is {metrics.sum(name)} at the end")
    if metrics.sum("vllm:kv_cache_usage_perc"):
        outcome.faults.append("KV blocks are in use at the end")
    restarts = metrics.sum("galley:engine_restarts_total")
    if restarts != len(outcome.kills):
        outcome.faults.append(f"{len(outcome.kills)} kills, but {restarts:g} restarts")
    outcome.faults += [line.strip() for line in server.log if "Traceback" in line]


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def report(outcome: Outcome, options: argparse.Namespace) -> dict[str, Any]:
    def spread(values: list[float]) -> dict[str, float]:
        points = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        return {name: round(quantile(values, q), 3) for name, q in points.items()}

    return {
        "model": options.model or "default",
        "minutes": options.minutes,
        "streams": options.streams,
        "kills": len(outcome.kills),
        "requests": outcome.num_requests,
        "requests in flight at a kill": outcome.num_disturbed,
        "output tokens": outcome.num_tokens,
        "failed or different": len(outcome.faults),
        "kill to /health 200, s": spread(outcome.restarts),
        "kill to next token of anyone, s": spread(outcome.next_tokens),
        "pause of a client over a kill, s": spread(outcome.pauses),
        "longest pause a client saw, s": round(outcome.longest_gap, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="as for galley serve; default: the built-in one")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    own, _, flags = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.split())
    outcome = Outcome()
    # SIGTERM must also stop the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # All kills are intended here; the restart limit has its own tests.
    serve_flags = [*([options.model] if options.model else []), "--max-engine-restarts", "9999"]
    serve_flags += [
        "--disable-uvicorn-access-log",
        "--kv-cache-memory-bytes",
        "2G",
        *flags.split(),
    ]
    with serve(*serve_flags) as server:
        asyncio.run(chaos(server, options, outcome))
        check_the_end(server, outcome)
        pids = server.pids()
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    if left:
        outcome.faults.append(f"processes {left} are left")
    summary = report(outcome, options)
    for name, value in summary.items():
        print(f"{name:36} {value}")
    for fault in outcome.faults[:10]:
        print(f"FAULT {fault[:2000]}")
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
