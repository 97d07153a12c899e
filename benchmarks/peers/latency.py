"""Latency of streams with and without a long prompt beside them, Galley beside its peers.

    LAB=… python -m benchmarks.peers.latency [--rounds 1] [--clients 1,8,15,32] [--without llama]

For each number of clients: equal requests in a closed loop; then chats that stream while a prompt
of 8,000 tokens arrives and one of 20 right behind it. The engines take turns with the same prompts.
Galley also runs with --target-itl 0, which shows what the long prompt takes without a limit on the
steps, and the workloads run on it with and without steps sized by time.

Prints the figures (medians over the rounds) and the goals.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.clients import Answer, stream
from benchmarks.peers.engines import Server, lab, running
from benchmarks.peers.workloads import WORKLOADS, figures, send
from galley.cli.bench.datasets.text import Corpus, read_text
from galley.text.tokenizer import load_tokenizer

OURS, UNTIMED, BEFORE = "galley-bf16", "galley-untimed", "galley-512"
PEERS = ("vllm-long", "llama-long")
_CHAT, _OUTPUT, _LONG, _SHORT = 64, 64, 8000, 20
#: Tokens that each chat has before the long prompt comes, and that none reaches.
_BEFORE, _ENDLESS = 8, 900

Figures = dict[str, float]


class Load:
    """Requests to one server, with prompts that no earlier one had.

    Args:
        seed: servers of one round get the same prompts.
    """

    def __init__(self, server: Server, corpus: Corpus, seed: int) -> None:
        self._port = int(server.base.rpartition(":")[2])
        self._model = server.engine.model
        self._corpus = corpus
        self._seed = seed * 1000

    def _prompts(self, count: int, length: int) -> list[str]:
        self._seed += 1
        return self._corpus.prompts(count, 0, length, 7919 * self._seed)

    async def _ask(self, prompt: str, output: int, into: Answer | None = None) -> Answer:
        body = {"model": self._model, "prompt": prompt, "max_tokens": output}
        body |= {"temperature": 0, "ignore_eos": True}
        answer = await stream(self._port, body, into=into)
        if answer.error or not answer.times:
            raise RuntimeError(f"port {self._port}: {answer.status} {answer.error}")
        return answer

    async def equal(self, clients: int) -> Figures:
        """Two requests of each client, one after the other."""
        prompts = self._prompts(2 * clients, _CHAT)

        async def client(first: int) -> list[Answer]:
            return [await self._ask(prompts[first + i], _OUTPUT) for i in (0, clients)]

        done = await asyncio.gather(*map(client, range(clients)))
        return itl([gap for answers in done for answer in answers for gap in answer.gaps])

    async def beside_long(self, clients: int) -> Figures:
        """Chats that stream while the long prompt and the short one behind it come."""
        chats = [Answer() for _ in range(clients)]
        prompts = self._prompts(clients, _CHAT)
        (long,), (alone, behind) = self._prompts(1, _LONG), self._prompts(2, _SHORT)
        pairs = zip(prompts, chats, strict=True)
        streams = [asyncio.create_task(self._ask(p, _ENDLESS, a)) for p, a in pairs]
        try:
            while min(len(chat.times) for chat in chats) < _BEFORE:
                await asyncio.sleep(0.01)
                for ended in filter(asyncio.Task.done, streams):
                    ended.result()  # raises what it failed with
            own = (await self._ask(alone, 2)).ttft
            long_one = asyncio.create_task(self._ask(long, 2))
            await asyncio.sleep(0.05)
            short = (await self._ask(behind, 2)).ttft
            late = await long_one
        finally:
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        begin, end = late.sent, late.times[0]
        gaps = [
            b - a
            for chat in chats
            for a, b in zip(chat.times, chat.times[1:], strict=False)
            if b > begin and a < end
        ]
        return {**itl(gaps), "long_ttft": late.ttft, "own_ttft": own, "short_ttft": short}


def itl(gaps: Sequence[float]) -> Figures:
    return {"p50": float(np.percentile(gaps, 50)), "p99": float(np.percentile(gaps, 99))}


def medians(rounds: Sequence[Figures]) -> Figures:
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def measure(
    servers: Sequence[Server], corpus: Corpus, clients: Sequence[int], rounds: int
) -> dict[tuple[str, int], tuple[Figures, Figures]]:
    """By engine and number of clients: equal requests, and chats beside a long prompt."""
    found: dict[tuple[str, int], list[tuple[Figures, Figures]]] = {}
    for turn in range(rounds):
        for count in clients:
            for server in servers:
                load = Load(server, corpus, turn * 100 + count)
                equal = asyncio.run(load.equal(count))
                mixed = asyncio.run(load.beside_long(count))
                found.setdefault((server.name, count), []).append((equal, mixed))
                print(line(server.name, count, equal, mixed), flush=True)
    return {
        key: (medians([a for a, _ in some]), medians([b for _, b in some]))
        for key, some in found.items()
    }


def line(name: str, clients: int, equal: Figures, mixed: Figures) -> str:
    """One line of the table."""
    cells = [
        f"{clients}",
        name,
        f"{equal['p50'] * 1e3:.1f} / {equal['p99'] * 1e3:.1f}",
        f"{equal['p99'] / equal['p50']:.1f}",
        f"{mixed['p50'] * 1e3:.1f} / {mixed['p99'] * 1e3:.1f}",
        f"{mixed['p99'] / mixed['p50']:.1f}",
        f"{mixed['long_ttft']:.2f}",
        f"{mixed['own_ttft']:.3f}",
        f"{mixed['short_ttft']:.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| clients | engine | ITL p50 / p99, ms | p99/p50 | beside a prompt of 8,000: p50 / p99, ms "
    "| p99/p50 | its TTFT, s | TTFT of 20 tokens: alone with the chats, s | behind it, s |"
)


def throughput(servers: Mapping[str, Server], corpus: Corpus, rounds: int) -> dict[str, float]:
    """By workload: tokens per second with steps sized by time over those with 512 tokens."""
    ratios: dict[str, float] = {}
    for name, load in WORKLOADS.items():
        found: dict[str, list[float]] = {OURS: [], BEFORE: []}
        for turn in range(rounds):
            samples = load.samples(corpus, turn)
            for engine, rates in found.items():
                server = servers[engine]
                done = send(server.base, server.engine.model, samples, load.concurrency)
                rates.append(figures(done, samples)["out_tok_s"])
        each = [a / b for a, b in zip(found[OURS], found[BEFORE], strict=True)]
        ratios[name] = statistics.median(each)
        print(f"{name}: {found}", flush=True)
    return ratios


def goals(
    found: Mapping[tuple[str, int], tuple[Figures, Figures]],
    ratios: Mapping[str, float],
    peers: Sequence[str],
) -> list[str]:
    """A line for each goal: what was found, the limit, whether it is met."""
    lines = ["| goal | found | limit | met |", "|---|---|---|---|"]

    def goal(text: str, value: float, limit: float, unit: str, over: bool = False) -> None:
        met = value >= limit if over else value <= limit
        lines.append(f"| {text} | {value:.2f} {unit} | {limit:.2f} | {'yes' if met else 'no'} |")

    if (OURS, 15) in found:
        mixed = found[OURS, 15][1]
        goal("p99 ITL of 15 chats beside a prompt of 8,000", mixed["p99"] * 1e3, 100, "ms")
        for name in peers:
            theirs = found[name, 15][1]["p99"]
            goal(f"the same against {name}", mixed["p99"] / theirs, 0.2, "×")
        untimed = found[UNTIMED, 15][1]["long_ttft"]
        goal("TTFT of the long prompt, no limit = 1", mixed["long_ttft"] / untimed, 1.3, "×")
        limit = 3 * mixed["p50"] + mixed["own_ttft"]
        goal("TTFT of 20 tokens behind it", mixed["short_ttft"], limit, "s")
    if (OURS, 32) in found:
        equal = found[OURS, 32][0]
        goal("p99/p50 of ITL, 32 equal clients", equal["p99"] / equal["p50"], 3, "")
    for name, ratio in ratios.items():
        goal(f"{name}, tokens/s over those with 512 tokens a step", ratio, 0.98, "×", over=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clients", default="1,8,15,32")
    parser.add_argument("--without", default="", help="engines to leave out, e.g. llama,vllm")
    parser.add_argument("--throughput", type=int, default=2, help="rounds of W1 to W4; 0: none")
    parser.add_argument("--port", type=int, default=8321, help="first of the servers' ports")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    out = lab() / "out"
    out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(read_text(), load_tokenizer(lab() / "weights" / "smollm2-bf16"))
    absent = tuple(args.without.split(",")) if args.without else ()
    peers = [name for name in PEERS if not name.startswith(absent)]
    clients = [int(part) for part in args.clients.split(",")]
    print(HEAD + "\n" + "|---" * HEAD.count(" | ") + "|---|", flush=True)
    with running([OURS, UNTIMED, *peers], args.port, out) as servers:
        found = measure(servers, corpus, clients, args.rounds)
    ratios: dict[str, float] = {}
    if args.throughput:
        with running([OURS, BEFORE], args.port, out) as servers:
            by_name = {server.name: server for server in servers}
            ratios = throughput(by_name, corpus, args.throughput)
    print("\n" + HEAD + "\n" + "|---" * HEAD.count(" | ") + "|---|")
    for (name, count), (equal, mixed) in found.items():
        print(line(name, count, equal, mixed))
    print("\n" + "\n".join(goals(found, ratios, peers)))


if __name__ == "__main__":
    main()
