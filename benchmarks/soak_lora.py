"""Loads and unloads adapters while others answer: no wrong answer, no leak.

    python -m benchmarks.soak_lora [--minutes 5] [--clients 12] [--slowdown 2] [--json FILE]

Each adapter says a text of its own to each prompt, noted before. Clients then ask the model alone,
adapters that stay and adapters that are loaded, replaced and unloaded all the time, among loads of
broken files. There are fewer places than adapters, so some requests wait. Fails for an answer that
is not that of an adapter which had the name while the request ran, for a broken file that is not
refused, if memory grows by more than --slope MB a minute after half the time, if open files, a
request or a block remain, or if the p99 of the time between tokens is more than --slowdown times
that of the same clients without loads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.lora import save_adapters
from benchmarks.served import MODEL, Server, serve
from galley.config import LoadConfig, ModelConfig
from galley.loader import open_checkpoint, resolve_source

FLAGS = ("--enable-lora", "--max-loras", "4", "--max-cpu-loras", "6", "--max-lora-rank", "8")
SIZES = ("--max-num-seqs", "12", "--max-model-len", "512", "--kv-cache-memory-bytes", "128M")
PROMPTS = ("The lens bends the light of", "A short list:", "Once upon a time")
#: Adapters that stay, names whose adapter changes, and adapters that take turns under these.
STATIC, CHANGING, OTHERS = 3, 3, 5
TOKENS = 16


@dataclass
class Soak:
    """Results of the run.

    Attributes:
        texts: (adapter's folder or the model, prompt) → what it says.
        owners: changing name → (since when, folders that it may stand for, None = not loaded), the
            newest last.
    """

    texts: dict[tuple[str, str], str] = field(default_factory=dict)
    owners: dict[str, list[tuple[float, set[str | None]]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    samples: list[tuple[float, float]] = field(default_factory=list)  # minutes, MB

    def slope(self) -> float:
        """MB a minute in the second half."""
        points = self.samples[len(self.samples) // 2 :]
        if len(points) < 2:
            return 0.0
        t, mb = zip(*points, strict=True)
        return float(np.polyfit(t, mb, 1)[0])

    def could_be(self, name: str, since: float) -> set[str | None]:
        """The folders that a name stood for at any time from `since` to now."""
        history = self.owners.get(name)
        if history is None:
            return {name}
        last = max(i for i, (at, _) in enumerate(history) if at <= since)
        return {folder for _, folders in history[last:] for folder in folders}


async def ask(
    http: httpx.AsyncClient, model: str, prompt: str, gaps: list[float] | None = None
) -> tuple[int, str]:
    """Status and text of a greedy completion; `gaps` collects the seconds between its events."""
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    text, before = "", 0.0
    request = {**body, "stream": True, "ignore_eos": True}
    async with http.stream("POST", "/v1/completions", json=request) as answer:
        if answer.status_code != 200:
            return answer.status_code, (await answer.aread()).decode()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.monotonic()
            if gaps is not None and before:
                gaps.append(now - before)
            before = now
            event = json.loads(line[6:])
            text += event["choices"][0]["text"] if "choices" in event else str(event)
    return 200, text


async def client(http: httpx.AsyncClient, seed: int, until: float, soak: Soak) -> None:
    rng = random.Random(seed)
    names = [MODEL, *(f"a{i}" for i in range(STATIC)), *soak.owners]
    while time.monotonic() < until:
        name, prompt = rng.choice(names), rng.choice(PROMPTS)
        sent = time.monotonic()
        status, text = await ask(http, name, prompt, soak.gaps)
        possible = soak.could_be(name, sent)
        if status == 404 and None in possible:
            soak.counts["not loaded"] += 1
        elif status != 200:
            soak.faults.append(f"{name}: {status} {text:.200}")
        elif text not in {soak.texts[folder, prompt] for folder in possible if folder}:
            soak.counts["wrong"] += 1
            soak.faults.append(f"{name} ({possible}) said {text!r} to {prompt!r}")
        else:
            soak.counts["model" if name == MODEL else "adapter"] += 1


async def change(
    http: httpx.AsyncClient, name: str, folder: Path, until: float, soak: Soak
) -> None:
    """Load, replace and unload an adapter, with a pause after each."""
    rng = random.Random(name)
    history = soak.owners[name]
    while time.monotonic() < until:
        [before] = history[-1][1]
        unload = before is not None and rng.random() < 0.3
        chosen = None if unload else f"a{rng.randrange(STATIC, STATIC + OTHERS)}"
        path, body = "/v1/unload_lora_adapter", {"lora_name": name}
        if chosen is not None:
            path = "/v1/load_lora_adapter"
            body |= {"lora_path": str(folder / chosen), "load_inplace": True}  # type: ignore[dict-item]
        history.append((time.monotonic(), {before, chosen}))
        answer = await http.post(path, json=body)
        history.append((time.monotonic(), {chosen}))
        soak.counts["unload" if unload else "load"] += 1
        if answer.status_code != 200:
            soak.faults.append(f"{path} {name}: {answer.status_code} {answer.text:.200}")
        await asyncio.sleep(rng.random() * 0.5)


async def break_things(
    http: httpx.AsyncClient, broken: dict[str, Path], until: float, soak: Soak
) -> None:
    """Load files that are damaged: each is refused."""
    while time.monotonic() < until:
        for name, path in broken.items():
            body = {"lora_name": name, "lora_path": str(path)}
            answer = await http.post("/v1/load_lora_adapter", json=body)
            if answer.status_code != 400:
                soak.faults.append(f"{name}: {answer.status_code} {answer.text:.200}")
            soak.counts["refused"] += 1
            await asyncio.sleep(0.3)


def save_broken(folder: Path) -> dict[str, Path]:
    """Adapters that no server may take, by what is wrong with them."""
    tensors = load_file(folder / "a0" / "adapter_model.safetensors")
    first = next(iter(tensors))
    made = {}
    for name, change in {
        "nan": {first: np.full_like(tensors[first], np.nan)},
        "shape": {first: tensors[first][:, :-1].copy()},
        "name": {"../../../etc/passwd": tensors[first]},
    }.items():
        path = folder / f"broken-{name}"
        path.mkdir()
        save_file({**tensors, **change}, path / "adapter_model.safetensors")
        config = (folder / "a0" / "adapter_config.json").read_text()
        (path / "adapter_config.json").write_text(config)
        made[name] = path
    path = folder / "broken-rank"
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    config = json.loads((folder / "a0" / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    return {**made, "rank": path}


def open_files(server: Server) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in server.pids())


async def watch(server: Server, until: float, soak: Soak) -> None:
    begin = time.monotonic()
    while time.monotonic() < until:
        await asyncio.sleep(5)
        soak.samples.append(((time.monotonic() - begin) / 60, server.resident()))


async def run(server: Server, folder: Path, args: argparse.Namespace, soak: Soak) -> dict[str, Any]:
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=180, limits=limits) as http:
        for i in range(STATIC + OTHERS):  # what each says, before anything else happens
            body = {"lora_name": f"a{i}", "lora_path": str(folder / f"a{i}")}
            (await http.post("/v1/load_lora_adapter", json=body)).raise_for_status()
        names = [MODEL, *(f"a{i}" for i in range(STATIC + OTHERS))]
        keys = [(name, prompt) for name in names for prompt in PROMPTS]
        texts = await asyncio.gather(*(ask(http, *key) for key in keys))
        soak.texts = {key: text for key, (_, text) in zip(keys, texts, strict=True)}
        said = {tuple(soak.texts[name, prompt] for prompt in PROMPTS) for name in names}
        if len(said) < len(names):
            soak.faults.append("two adapters say the same to all prompts")
        for i in range(STATIC, STATIC + OTHERS):
            await http.post("/v1/unload_lora_adapter", json={"lora_name": f"a{i}"})
        quiet = time.monotonic() + min(30.0, args.minutes * 60 / 5)
        await asyncio.gather(*(client(http, seed, quiet, soak) for seed in range(args.clients)))
        before, soak.gaps = soak.gaps, []
        files = open_files(server)
        soak.owners |= {f"x{i}": [(0.0, {None})] for i in range(CHANGING)}
        until = time.monotonic() + args.minutes * 60
        await asyncio.gather(
            watch(server, until, soak),
            break_things(http, save_broken(folder), until, soak),
            *(change(http, name, folder, until, soak) for name in soak.owners),
            *(client(http, 100 + seed, until, soak) for seed in range(args.clients)),
        )
        for name, history in soak.owners.items():
            if history[-1][1] != {None}:
                await http.post("/v1/unload_lora_adapter", json={"lora_name": name})
    metrics = server.wait_idle()
    left = metrics.sum("vllm:num_requests_running", "vllm:num_requests_waiting")
    left += metrics.sum("vllm:kv_cache_usage_perc")
    if left:
        soak.faults.append("requests or blocks remain")
    more = open_files(server) - files
    if more > 4:
        soak.faults.append(f"{more} more files are open than before")
    if soak.slope() > args.slope:
        soak.faults.append(f"memory grows by {soak.slope():.1f} MB a minute")
    soak.faults += [line.strip() for line in server.log if "ERROR" in line or "Traceback" in line]
    quiet_p99, p99 = (statistics.quantiles(gaps, n=100)[-1] for gaps in (before, soak.gaps))
    slowdown = round(p99 / quiet_p99, 2)
    if slowdown > args.slowdown:
        soak.faults.append(f"the p99 between tokens is {slowdown} times that without loads")
    return {
        **soak.counts,
        "wrong": soak.counts["wrong"],
        "p99 between tokens, ms": round(p99 * 1000, 1),
        "without loads": round(quiet_p99 * 1000, 1),
        "slowdown": slowdown,
        "MB a minute": round(soak.slope(), 2),
        "distinct texts": len(set(soak.texts.values())),
        "files more": more,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--slope", type=float, default=2.0, help="most MB a minute")
    parser.add_argument("--slowdown", type=float, default=2.0, help="most, of p99 between tokens")
    parser.add_argument("--json", help="file for the figures")
    args = parser.parse_args()
    soak = Soak()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = resolve_source(ModelConfig(), LoadConfig())
        save_adapters(open_checkpoint(source), 8, folder, size=0.05)
        env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        with serve(*FLAGS, *SIZES, env=env) as server:
            figures = asyncio.run(run(server, folder, args, soak))
    print(json.dumps(figures, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps({**figures, "faults": soak.faults}))
    for fault in soak.faults[:20]:
        print("FAULT:", fault)
    print("failed" if soak.faults else "passed")
    return int(bool(soak.faults))


if __name__ == "__main__":
    sys.exit(main())
