"""Reproduces the problems of docs/troubleshooting.md: does the metric show them, does the fix help?

    python -m benchmarks.symptoms [--only NAME] [--dry]

For each symptom a load and a setting reproduce the problem on a server with the built-in model, and
the metrics that show it are read. Then the same load runs with each setting that fixes it
(checklist 210–214, 260). Fails if a metric does not move as it should. The numbers go to
docs/generate/symptoms.json, from which `make docs` writes docs/troubleshooting.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.clients import CHAT, stream
from benchmarks.served import MODEL, ROOT, Metrics, Server, serve

RESULTS = ROOT / "docs" / "generate" / "symptoms.json"
COMMON = ("--max-model-len", "2048", "--disable-uvicorn-access-log")
TEXT = (ROOT / "tests" / "data" / "opticks.txt").read_text(encoding="utf-8")
#: Characters per token of this text, roughly.
LETTERS = 4


@dataclass(frozen=True)
class Reading:
    """A number that shows a symptom.

    Attributes:
        label: its name on the page; `query` is its PromQL.
        read: from the scrapes before and after the load, and the peaks of gauges in between.
        factor: (with the fix) / (without) must be at most this, or at least this if above 1.
    """

    label: str
    query: str
    read: Callable[[Metrics, Metrics, Peaks], float]
    factor: float
    unit: str = ""


@dataclass(frozen=True)
class Symptom:
    """A problem and its remedies.

    Attributes:
        number: the checklist's.
        trouble: flags with which the load has the problem.
        remedies: flags that fix it, the first choice first.
        others: advice beside the flags.
    """

    name: str
    number: int
    title: str
    why: str
    load: Callable[[int], Awaitable[object]]
    trouble: tuple[str, ...]
    remedies: tuple[tuple[str, ...], ...]
    readings: tuple[Reading, ...]
    others: str = ""


class Peaks:
    """The highest and the mean values of gauges while it runs."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.highest: dict[str, float] = {}
        self._seen: list[dict[str, float]] = []

    def mean(self, name: str) -> float:
        values = [sums.get(name, 0.0) for sums in self._seen]
        return sum(values) / len(values) if values else 0.0

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            sums: dict[str, float] = {}
            for name, _, value in self._server.metrics().samples:
                sums[name] = sums.get(name, 0.0) + value
            self._seen.append(sums)
            for name, value in sums.items():
                self.highest[name] = max(value, self.highest.get(name, 0.0))


# ---------------------------------------------------------------- loads


def request(tokens: int, output: int, start: int = 0) -> dict[str, Any]:
    """A completion request with a prompt of about `tokens` tokens of the text."""
    offset = start * 997 % (len(TEXT) // 2)
    return {
        "model": MODEL,
        "prompt": TEXT[offset : offset + tokens * LETTERS],
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
    }


async def crowd(port: int) -> None:
    """Sixteen clients at once, with short prompts."""
    await asyncio.gather(*(stream(port, request(20, 96, i)) for i in range(16)))


async def long_among_short(port: int) -> None:
    """Long prompts while twelve short requests stream."""
    streams = [asyncio.ensure_future(stream(port, request(20, 1000, i))) for i in range(12)]
    await asyncio.sleep(1)
    for i in range(4):
        await stream(port, request(800, 1, 50 + i))
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


async def growing(port: int) -> None:
    """Twelve chats whose answers go on to the longest that the server allows."""

    async def chat(start: int) -> None:
        text = request(60, 0, start)["prompt"]
        body = {"messages": [{"role": "user", "content": text}], "ignore_eos": True}
        await stream(port, body, path=CHAT)

    await asyncio.gather(*(chat(i) for i in range(12)))


async def interrupted(port: int) -> None:
    """Three streams, with a long prompt every 0.4 s."""
    streams = [asyncio.ensure_future(stream(port, request(20, 400, i))) for i in range(3)]
    for i in range(6):
        await asyncio.sleep(0.4)
        await stream(port, request(1500, 1, 50 + i))
    await asyncio.gather(*streams)


async def arrivals(port: int) -> None:
    """Four requests a second, for eight seconds."""
    tasks = []
    for i in range(32):
        tasks.append(asyncio.ensure_future(stream(port, request(30, 64, i))))
        await asyncio.sleep(0.25)
    await asyncio.gather(*tasks)


async def repeated(port: int) -> None:
    """The same long beginning, eight times."""
    for i in range(8):
        body = request(700, 4)
        await stream(port, {**body, "prompt": body["prompt"] + f" Question {i}: why?"})


async def in_turn(port: int) -> None:
    """Four long beginnings, one after the other, three times."""
    for i in range(12):
        await stream(port, request(700, 4, i % 4 * 4))


# ---------------------------------------------------------------- readings


def mean(name: str, label: str, factor: float) -> Reading:
    query = f"rate({name}_sum[5m]) / rate({name}_count[5m])"
    return Reading(label, query, lambda a, b, _: b.mean(name, a), factor, "s")


def p99(name: str, label: str, factor: float, unit: str = "s") -> Reading:
    query = f"histogram_quantile(0.99, rate({name}_bucket[5m]))"
    return Reading(label, query, lambda a, b, _: b.quantile(name, 0.99, a), factor, unit)


def peak(name: str, label: str, factor: float) -> Reading:
    return Reading(label, name, lambda a, b, peaks: peaks.highest.get(name, 0.0), factor)


def average(name: str, label: str, factor: float) -> Reading:
    query = f"avg_over_time({name}[5m])"
    return Reading(label, query, lambda a, b, peaks: peaks.mean(name), factor)


def growth(name: str, label: str, factor: float) -> Reading:
    return Reading(label, f"rate({name}[5m])", lambda a, b, _: b.sum(name) - a.sum(name), factor)


HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
HIT_RATE = Reading(
    "prefix cache hit rate",
    f"rate({HITS}[5m]) / rate({QUERIES}[5m])",
    lambda a, b, _: (b.sum(HITS) - a.sum(HITS)) / max(b.sum(QUERIES) - a.sum(QUERIES), 1),
    2.0,
)
TTFT = "vllm:time_to_first_token_seconds"

SYMPTOMS = (
    Symptom(
        "ttft-queue",
        210,
        "First tokens are late, and requests wait",
        "Requests are queued because all slots are in use.",
        crowd,
        ("--max-num-seqs", "2"),
        (("--max-num-seqs", "32"),),
        (
            average("vllm:num_requests_waiting", "requests waiting, mean", 0.5),
            mean(TTFT, "time to first token, mean", 0.6),
        ),
        "If the KV cache is full as well (`vllm:kv_cache_usage_perc`), more slots do not help: see "
        "below, or add replicas on other machines (not tried here).",
    ),
    Symptom(
        "ttft-prompts",
        210,
        "First tokens are late, and no request waits",
        "Prompts are long (`vllm:request_prompt_tokens`), and each step has only the tokens for "
        "them that the running streams leave.",
        long_among_short,
        ("--max-num-batched-tokens", "16", "--max-num-seqs", "16", "--num-threads", "1"),
        (
            ("--max-num-batched-tokens", "2048", "--max-num-seqs", "16", "--num-threads", "1"),
            ("--max-num-batched-tokens", "16", "--max-num-seqs", "16", "--num-threads", "2"),
        ),
        (
            p99("vllm:request_prompt_tokens", "prompt tokens, p99", 1.0, ""),
            mean("vllm:request_prefill_time_seconds", "prefill time, mean", 0.8),
            mean(TTFT, "time to first token, mean", 0.8),
        ),
        "If streams get choppy, the step is too large again: see below.",
    ),
    Symptom(
        "kv-pressure",
        211,
        "The KV cache is full, and requests are preempted",
        "The running sequences need more blocks than there are; some are preempted and recomputed.",
        growing,
        ("--kv-cache-memory-bytes", "72M", "--max-model-len", "384"),
        (
            ("--kv-cache-memory-bytes", "256M", "--max-model-len", "384"),
            ("--gpu-memory-utilization", "0.5", "--max-model-len", "384"),
            ("--kv-cache-memory-bytes", "72M", "--max-model-len", "384", "--max-num-seqs", "6"),
            ("--kv-cache-memory-bytes", "72M", "--max-model-len", "192"),
            ("--kv-cache-memory-bytes", "72M", "--max-model-len", "384", "--kv-cache-dtype", "fp8"),
        ),
        (
            peak("vllm:kv_cache_usage_perc", "KV cache usage, max", 0.8),
            growth("vllm:num_preemptions_total", "preemptions", 0.2),
        ),
        "Weights of a quantised checkpoint leave more memory to `--gpu-memory-utilization`: "
        "`galley inspect MODEL --memory` says how much.",
    ),
    Symptom(
        "choppy",
        212,
        "Streams are choppy",
        "A long prompt fills a step, and every stream waits for that step.",
        interrupted,
        ("--max-num-batched-tokens", "2048"),
        (
            ("--max-num-batched-tokens", "128"),
            ("--target-itl", "60"),
        ),
        (
            p99("vllm:inter_token_latency_seconds", "inter-token latency, p99", 0.8),
            p99("galley:step_tokens", "tokens in a step, p99", 0.5, ""),
        ),
        "Without `--max-num-batched-tokens`, a step with prompts takes about `--target-itl` "
        "milliseconds (60, a server's default) while others stream. "
        "`--long-prefill-token-threshold` limits only prompts, and only while others run.",
    ),
    Symptom(
        "queue",
        213,
        "The queue grows",
        "Requests arrive faster than the slots are freed: the waiting reason is `capacity`.",
        arrivals,
        ("--max-num-seqs", "1"),
        (("--max-num-seqs", "16"),),
        (
            mean("vllm:request_queue_time_seconds", "time in the queue, mean", 0.5),
            peak("vllm:num_requests_waiting_by_reason", "waiting for capacity, max", 0.5),
        ),
        "If it grows with enough slots, the machine is full: add replicas on other machines (not "
        "tried here). A reason `deferred` "
        "means that the request waits for something other than a slot.",
    ),
    Symptom(
        "prefix",
        214,
        "Prompts with a common prefix are slow",
        "Each is recomputed: prefix caching is off, or the prompts differ early (a date, an id).",
        repeated,
        ("--no-enable-prefix-caching",),
        (("--enable-prefix-caching",),),
        (HIT_RATE, mean(TTFT, "time to first token, mean", 0.6)),
        "Put the parts that change at the end of the prompt.",
    ),
    Symptom(
        "prefix-evicted",
        214,
        "Repeated prompts are slow although prefix caching is on",
        "Their blocks are evicted before they are needed again: the cache holds fewer tokens than "
        "the prompts that take turns.",
        in_turn,
        ("--kv-cache-memory-bytes", "24M", "--max-model-len", "1024"),
        (
            ("--kv-cache-memory-bytes", "256M", "--max-model-len", "1024"),
            ("--gpu-memory-utilization", "0.5", "--max-model-len", "1024"),
        ),
        (HIT_RATE, mean(TTFT, "time to first token, mean", 0.6)),
    ),
)


# ---------------------------------------------------------------- running


def measure(symptom: Symptom, flags: tuple[str, ...]) -> list[float]:
    """The readings under the symptom's load, with these flags."""
    sized = {"--kv-cache-memory-bytes", "--gpu-memory-utilization"} & {*flags}
    memory = () if sized else ("--kv-cache-memory-bytes", "256M")
    with serve(*COMMON, *memory, *flags) as server:
        asyncio.run(stream(server.port, request(8, 2, 9999)))
        before = server.metrics()
        with Peaks(server) as peaks:
            asyncio.run(symptom.load(server.port))  # type: ignore[arg-type]
        after = server.wait_idle()
    return [reading.read(before, after, peaks) for reading in symptom.readings]


def judge(reading: Reading, trouble: float, remedy: float) -> str | None:
    """An error text if the metric has not moved as it should."""
    bound = trouble * reading.factor
    moved = remedy >= bound and remedy > trouble if reading.factor > 1 else remedy <= bound
    if moved or reading.factor == 1.0:
        return None
    return f"{reading.label}: {trouble:.3g} → {remedy:.3g}, wanted × {reading.factor}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[s.name for s in SYMPTOMS])
    parser.add_argument("--dry", action="store_true", help="write no file")
    args = parser.parse_args()
    faults: list[str] = []
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for symptom in SYMPTOMS:
        if args.only not in (None, symptom.name):
            continue
        settings = (symptom.trouble, *symptom.remedies)
        columns = [measure(symptom, flags) for flags in settings]
        rows = dict(zip(symptom.readings, zip(*columns, strict=True), strict=True))
        wrong: list[str] = []
        for flags, column in zip(symptom.remedies, columns[1:], strict=True):
            print(f"{symptom.title}: {' '.join(symptom.trouble)} → {' '.join(flags)}", flush=True)
            for reading, trouble, remedy in zip(rows, columns[0], column, strict=True):
                fault = judge(reading, trouble, remedy)
                print(f"  {reading.label}: {trouble:.3g} → {remedy:.3g}{' WRONG' if fault else ''}")
                wrong += [f"{symptom.name}: {fault}"] if fault else []
        faults += wrong
        if not wrong:
            results[symptom.name] = {r.label: [round(v, 4) for v in rows[r]] for r in rows}
    if not args.dry:
        results["machine"] = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
