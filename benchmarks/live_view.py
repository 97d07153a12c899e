"""The live view's cost: CPU time of a look, throughput at 64 streams, and the first paint.

    make bench-ui                       # with Chromium: the first paint, too
    python -m benchmarks.live_view

Takes two to three minutes. CPU time: scheduler and KV cache are real, the model is not (a step
yields one token a row). Throughput: a server of the built-in model, watched and not in turns. First
paint: of each page, beside two streams.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

import httpx
import msgspec
import numpy as np

from benchmarks.served import MODEL, Server, serve
from galley.batch import GroupSpec, StepPlan, StepResult
from galley.config import CacheConfig, EngineConfig, SchedulerConfig
from galley.engine.build import build_core
from galley.request import Request, SamplingParams
from galley.server.live_feed import INTERVAL

STREAMS, BLOCKS, PROMPT, LENGTH = 64, 20_000, 1000, 4096
#: Steps between two looks: those of 20 ms.
STEPS = int(INTERVAL / 0.02)
LOOKS = 40
#: Most of the throughput that watching may cost, and milliseconds to the first paint.
COST, PAINT = 0.01, 300
#: Loads of each page.
LOADS = 5
#: Seconds of a server that is watched, or not.
PERIOD = 4.0
_FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


class OneToken:
    """An executor."""

    batch_invariant = True
    lookahead = max_drafts = 0
    groups = [GroupSpec("full", 16, 64)]
    max_model_len = LENGTH
    num_blocks = 1 + BLOCKS

    def submit(self, plan: StepPlan) -> OneToken:
        self._plan = plan
        return self

    def sample(self, mask: Any = None) -> StepResult:
        counts = self._plan.num_sampled
        return StepResult(self._plan.step, counts, np.full(counts.sum(), 5, np.int32))

    def rpc(self, method: str, *args: Any) -> list[Any]:
        return [None]

    def shutdown(self) -> None:
        pass


def looks() -> None:
    config = EngineConfig(
        cache=CacheConfig(block_size=16),
        scheduler=SchedulerConfig(max_num_batched_tokens=8192, max_num_seqs=STREAMS),
    )
    core = build_core(config, OneToken())
    prompt = np.arange(PROMPT, dtype=np.int32).tobytes()
    core.add(
        Request(
            handle=handle,
            request_id=f"cmpl-{handle:032}",
            prompt_token_ids=prompt,
            params=SamplingParams(ignore_eos=True),
            max_total_tokens=LENGTH,
            cache_salt=str(handle % 8),
        )
        for handle in range(3 * STREAMS)
    )
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    seconds: dict[str, list[float]] = {"engine": [], "server": []}
    for _ in range(LOOKS):
        for _ in range(STEPS):
            core.step()
        begin = time.process_time()
        view = encode(core.live_view(0, max(core.trace.last - STEPS, 0)))
        middle = time.process_time()
        msgspec.json.encode({"engines": [decode(view)]})
        seconds["engine"].append(middle - begin)
        seconds["server"].append(time.process_time() - middle)
    for name, found in seconds.items():
        each = float(np.median(found))
        print(f"{name}: {each * 1e3:.2f} ms of CPU a look, {each / INTERVAL:.2%} of a core")
    print(f"{len(view):,} bytes a look")


def watched(pairs: int) -> None:
    """Serve 64 requests at once and print the output tokens a second, watched / not watched."""
    flags = ("--max-num-seqs", f"{STREAMS}", "--max-model-len", "1024")
    with serve(*flags, "--kv-cache-memory-bytes", "1G") as server:
        done = threading.Event()
        clients = [threading.Thread(target=ask, args=(server, i, done)) for i in range(STREAMS)]
        for client in clients:
            client.start()
        rate(server)  # until all run
        ratios = []
        for pair in range(pairs):
            # Each order half of the time: the machine's speed drifts.
            first, second = (rate(server, watch=(pair + i) % 2 == 0) for i in range(2))
            ratios.append(first / second if pair % 2 == 0 else second / first)
        done.set()
    for client in clients:  # their server has ended
        client.join()
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    print(f"throughput watched / not: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}")
    verdict(f"watching costs at most {COST:.0%} at {STREAMS} streams", middle >= 1 - COST)


def ask(server: Server, number: int, done: threading.Event) -> None:
    body = {"model": MODEL, "prompt": f"Tale {number}:", "max_tokens": 900, "ignore_eos": True}
    while not done.is_set():
        try:
            httpx.post(f"{server.url}/v1/completions", json=body, timeout=600).raise_for_status()
        except httpx.HTTPError:
            if not done.is_set():
                raise


def rate(server: Server, watch: bool = False) -> float:
    """Output tokens a second over some seconds."""
    done = threading.Event()
    watcher = threading.Thread(target=look, args=(server, done))
    if watch:
        watcher.start()
    before, begin = server.metrics().sum("vllm:generation_tokens_total"), time.perf_counter()
    time.sleep(PERIOD)
    after, end = server.metrics().sum("vllm:generation_tokens_total"), time.perf_counter()
    done.set()
    if watch:
        watcher.join()
    return (after - before) / (end - begin)


def look(server: Server, done: threading.Event) -> None:
    with httpx.stream("GET", f"{server.url}/ui/api/live", timeout=60) as stream:
        for _ in stream.iter_bytes():
            if done.is_set():
                return


def paints() -> None:
    """First paint of each page in Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("first paint: not measured without Playwright (make bench-ui)")
        return
    path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    flags = ("--max-num-seqs", "8", "--kv-cache-memory-bytes", "256M", "--max-model-len", "1024")
    done = threading.Event()
    with serve(*flags) as server, sync_playwright() as playwright:
        clients = [threading.Thread(target=ask, args=(server, i, done)) for i in range(2)]
        for client in clients:
            client.start()
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        found = {}
        for name in ("chat", "live", "step", "operate"):
            times = []
            for _ in range(LOADS):
                page = browser.new_context(bypass_csp=True).new_page()  # as waiting evaluates
                page.goto(f"{server.url}/ui/#/{name}")
                painted = page.wait_for_function(_FIRST_PAINT)
                times.append(painted.json_value())
                page.close()
            found[name] = float(np.median(times))
        browser.close()
        done.set()
    for client in clients:
        client.join()
    print("first paint, ms:", ", ".join(f"{name} {ms:.0f}" for name, ms in found.items()))
    verdict(f"the first paint takes less than {PAINT} ms", max(found.values()) < PAINT)


def verdict(claim: str, holds: bool) -> None:
    print(f"{claim}: {'yes' if holds else 'NO'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=12)
    given = parser.parse_args()
    looks()
    paints()
    watched(given.pairs)


if __name__ == "__main__":
    main()
