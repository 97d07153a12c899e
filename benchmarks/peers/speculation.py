"""Drafts of Galley beside those of vLLM and llama.cpp: one stream, the prompts of
`benchmarks.speculation`.

    LAB=… python -m benchmarks.peers.speculation [--rounds 2] [--tokens 64] [--engines vllm ...]
        [--work copy agent ...]

Each engine is started without drafts and with each kind that it has (vLLM's suffix where the
package arctic-inference is installed), and all of them take turns with the same requests. A ratio
is the median over the rounds of plain seconds by seconds with drafts. Before the rounds each server
has answered the same requests once.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
import urllib.request

from benchmarks.peers.engines import Server, lab, running
from benchmarks.speculation import WORK

#: Without drafts → with them.
PAIRS = {
    "galley-bf16-plain": ("galley-bf16-ngram", "galley-bf16-suffix"),
    "vllm-bf16": ("vllm-bf16-ngram", "vllm-bf16-suffix"),
    "galley-q4_1-plain": ("galley-q4_1-ngram", "galley-q4_1-suffix"),
    "llama-q4_1": ("llama-q4_1-simple", "llama-q4_1-cache", "llama-q4_1-mod"),
}
HEAD = (
    "| engine | work | ratio | tokens/s | without drafts | answers that differ |\n"
    "|---|---|---|---|---|---|"
)


def answers(server: Server, work: str, tokens: int) -> tuple[float, list[str]]:
    """Seconds and texts of the requests of `work`, one after the other."""
    prompts, sampling = WORK[work]
    body = {"model": server.engine.model, "max_tokens": tokens, "ignore_eos": True, **sampling}
    texts, begin = [], time.perf_counter()
    for seed, prompt in enumerate(prompts):
        data = json.dumps({**body, "prompt": prompt, "seed": seed}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.base}/v1/completions", data, headers)
        with urllib.request.urlopen(request) as answer:
            texts.append(json.load(answer)["choices"][0]["text"])
    return time.perf_counter() - begin, texts


def rows(servers: dict[str, Server], work: str, tokens: int, rounds: int) -> list[str]:
    """Lines of the table."""
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    texts: dict[str, list[str]] = {}
    for turn in range(rounds + 1):
        order = list(servers) if turn % 2 else list(servers)[::-1]
        for name in order:
            took, texts[name] = answers(servers[name], work, tokens)
            if turn:
                seconds[name].append(took)
    count, lines = len(WORK[work][0]), []
    for plain, ways in PAIRS.items():
        for name in ways:
            if name not in servers:
                continue
            each = zip(seconds[plain], seconds[name], strict=True)
            ratio = statistics.median(a / b for a, b in each)
            speeds = [count * tokens / statistics.median(seconds[n]) for n in (name, plain)]
            differ = sum(a != b for a, b in zip(texts[plain], texts[name], strict=True))
            lines.append(
                f"| {name} | {work} | {ratio:.2f} | {speeds[0]:.0f} | {speeds[1]:.0f} "
                f"| {differ} of {count} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--engines", nargs="+", default=[""], help="how names begin: all")
    parser.add_argument("--work", nargs="+", default=["copy", "agent"], choices=WORK)
    parser.add_argument("--port", type=int, default=8361, help="first of the servers' ports")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    out = lab() / "out"
    out.mkdir(parents=True, exist_ok=True)
    names = [
        name
        for plain, ways in PAIRS.items()
        if any(way.startswith(tuple(args.engines)) for way in ways)
        for name in (plain, *(way for way in ways if way.startswith(tuple(args.engines))))
    ]
    packages = lab().glob("vllmcpu/lib/python*/site-packages/arctic_inference")
    if "vllm-bf16-suffix" in names and not any(packages):
        print("vllm-bf16-suffix is left out: arctic-inference is not installed")
        names.remove("vllm-bf16-suffix")
    with running(names, args.port, out) as servers:
        print(HEAD, flush=True)
        for work in args.work:
            found = rows({s.name: s for s in servers}, work, args.tokens, args.rounds)
            print("\n".join(found), flush=True)


if __name__ == "__main__":
    main()
