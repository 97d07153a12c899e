"""Throughput with LoRA adapters against the same requests without: pairs of runs in one process.

    python -m benchmarks.lora [--pairs 5] [--tokens 64] [--streams 32] [--rank 16] [--quantized]
                             [--cpu-time] [--read] [--vllm]

The built-in model in bf16 (or, with --quantized, as it is shipped) decodes on 32 streams: with 16
adapters in turn, with one for all, and with none. The order within a pair alternates, and a ratio
is the median over the pairs. The adapters' numbers are random: what they say does not matter. With
--cpu-time one thread computes and its CPU seconds are counted: for a machine that does other work,
too. With --read the bytes of model and adapters are read by loops that compute nothing: the share
that memory allows. With --vllm the vLLM that benchmarks/peers/vllm.sh has installed under the
folder LAB then does the same with the same adapters.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.peers.engines import ENGINES, environment_of, lab
from galley import LLM, LoRARequest, SamplingParams, TokensPrompt
from galley.config import LoadConfig, ModelConfig
from galley.layers.shapes import ShapeSource
from galley.loader import open_checkpoint, resolve_source
from galley.loader.tensor import Checkpoint
from galley.models.decoder import Stage
from galley.models.registry import model_spec
from galley.quant import to_float32

NUM_ADAPTERS = 16
PROMPT_TOKENS = 16
#: Of the built-in model.
NUM_LAYERS = 30


def save_bf16(checkpoint: Checkpoint, folder: Path) -> Path:
    """The checkpoint with all of its numbers in bf16."""
    folder.mkdir()
    tensors = {
        name: torch.from_numpy(np.array(to_float32(checkpoint.tensor(name)))).bfloat16()
        for name in checkpoint.names()
    }
    save_file(tensors, folder / "model.safetensors")
    config = {**checkpoint.model_info.hf_config, "torch_dtype": "bfloat16"}
    config.setdefault("architectures", [checkpoint.model_info.architecture])
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return folder


def save_adapters(
    checkpoint: Checkpoint, rank: int, folder: Path, size: float = 0.01
) -> list[LoRARequest]:
    """Adapters of all linear layers but the head, of random numbers of about this size."""
    source = ShapeSource()
    model_spec(checkpoint.model_info).build(source, Stage(1))
    requests = []
    sites = [site for site in source.sites.all if site.site.copy < 0]  # no embedding, no head
    for i in range(NUM_ADAPTERS):
        rng, tensors = np.random.default_rng(i), {}
        for site in sites:
            for part in site.parts:
                for letter, shape in (("A", (rank, part.shape[1])), ("B", (part.shape[0], rank))):
                    values = torch.from_numpy(rng.normal(0, size, shape)).bfloat16()
                    tensors[f"base_model.model.{part.name}.lora_{letter}.weight"] = values
        path = folder / f"a{i}"
        path.mkdir()
        save_file(tensors, path / "adapter_model.safetensors")
        names = sorted({name.rpartition(".")[2] for site in sites for name in site.names})
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": names}
        (path / "adapter_config.json").write_text(json.dumps(config))
        requests.append(LoRARequest(f"a{i}", i + 1, str(path)))
    return requests


def tokens_per_second(
    llm: LLM,
    loras: Sequence[LoRARequest | None],
    num_tokens: int,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Of prompts of random tokens, one for each entry of `loras`."""
    rng = np.random.default_rng(seed)
    prompts: list[TokensPrompt] = [
        {"prompt_token_ids": rng.integers(5, 40_000, PROMPT_TOKENS).tolist()} for _ in loras
    ]
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    begin = clock()
    outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=loras)
    seconds = clock() - begin
    return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--quantized", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--read", action="store_true", help="measure the reading alone, too")
    parser.add_argument("--vllm", action="store_true", help="measure vLLM, too")
    parser.add_argument("--profile", action="store_true", help="print the time of each operation")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = resolve_source(ModelConfig(), LoadConfig())
        checkpoint = open_checkpoint(source)
        model = "" if args.quantized else str(save_bf16(checkpoint, folder / "base"))
        adapters = save_adapters(checkpoint, args.rank, folder)
        llm = LLM(
            model,
            enable_lora=True,
            max_loras=NUM_ADAPTERS,
            max_lora_rank=max(args.rank, 8),
            max_num_seqs=args.streams,
            max_model_len=512,
            kv_cache_memory_bytes=1 << 30,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            num_threads=1 if args.cpu_time else None,
        )
        n = args.streams
        sides: dict[str, list[LoRARequest | None]] = {
            f"{NUM_ADAPTERS} adapters": [adapters[i % NUM_ADAPTERS] for i in range(n)],
            "one adapter": [adapters[0]] * n,
        }
        speeds = {side: compare(llm, side, loras, args) for side, loras in sides.items()}
        if args.read:
            read_alone(folder, args)
        if args.profile:
            profile(llm, sides, args.tokens)
        if args.vllm:
            compare_vllm(model, folder, speeds, args)


def compare_vllm(
    model: str, folder: Path, speeds: dict[str, float], args: argparse.Namespace
) -> None:
    """Print vLLM's throughput of each side, and this engine's as a multiple of it."""
    engine = ENGINES["vllm-bf16"]
    numbers = map(str, (args.rank, args.streams, args.tokens, args.pairs))
    worker = Path(__file__).parent / "peers" / "lora_vllm.py"
    with (folder / "vllm.log").open("w+") as log:
        done = subprocess.run(
            [lab() / "vllmcpu/bin/python", worker, model, folder, *numbers],
            stdout=log,
            stderr=log,
            env=environment_of(engine),
        )
        if done.returncode:
            log.seek(0)
            sys.exit(f"vLLM ended with {done.returncode}:\n{log.read()[-3000:]}")
    found = json.loads((folder / "vllm.json").read_bytes())
    base = found.pop("base")
    for side, speed in found.items():
        print(
            f"vLLM, {side}: {speed:.0f} of {base:.0f} tokens/s, {speed / base:.1%} of its base; "
            f"Galley has {speeds[side] / speed:.1f} times as many"
        )


def compare(
    llm: LLM, side: str, loras: Sequence[LoRARequest | None], args: argparse.Namespace
) -> float:
    """Tokens a second of one side, printed as a ratio to those of the base alone."""
    none: list[LoRARequest | None] = [None] * len(loras)
    for given in (none, loras):
        tokens_per_second(llm, given, 4, 0)
    clock = time.process_time if args.cpu_time else time.perf_counter
    ratios, base, with_adapters = [], [], []
    for pair in range(args.pairs):
        order = (none, loras) if pair % 2 else (loras, none)
        speeds = {id(x): tokens_per_second(llm, x, args.tokens, pair, clock) for x in order}
        base.append(speeds[id(none)])
        with_adapters.append(speeds[id(loras)])
        ratios.append(speeds[id(loras)] / speeds[id(none)])
    print(
        f"{side}, {len(loras)} streams: {statistics.median(with_adapters):.0f} of "
        f"{statistics.median(base):.0f} tokens/s, {statistics.median(ratios):.1%} of the base",
        flush=True,
    )
    return statistics.median(with_adapters)


def read_alone(folder: Path, args: argparse.Namespace) -> None:
    """Print the time of reading the model's bytes, as a share of that with the adapters'."""
    threads = 1 if args.cpu_time else len(os.sched_getaffinity(0))
    clock = time.process_time if args.cpu_time else time.perf_counter
    files = [folder.glob(f"{name}/*.safetensors") for name in ("base", "a*")]
    sizes = [sum(path.stat().st_size for path in paths) for paths in files]
    base, adapters = (
        np.ones((threads, NUM_LAYERS, n // 8 // NUM_LAYERS // threads), np.int64) for n in sizes
    )

    def seconds(*memory: NDArray[np.int64]) -> float:
        def read(thread: int) -> None:
            for layer in range(NUM_LAYERS):
                for part in memory:
                    part[thread, layer].max()

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(threads)))
            begin = clock()
            list(pool.map(read, range(threads)))
            return clock() - begin

    pairs = [(seconds(base), seconds(base, adapters)) for _ in range(4 * args.pairs)]
    alone, both = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(alone / both for alone, both in pairs)
    print(
        f"reading alone: {sizes[0] / 1e6:.0f} MB in {alone:.1f} ms, with the adapters' "
        f"{sizes[1] / 1e6:.0f} MB {both:.1f} ms: {ratio:.1%}"
    )


def profile(llm: LLM, sides: dict[str, list[LoRARequest | None]], num_tokens: int) -> None:
    base: list[LoRARequest | None] = [None] * 32
    for side, loras in {"base": base, **sides}.items():
        llm._core.executor.rpc("profile", True)
        tokens_per_second(llm, loras, num_tokens, 1)
        [timings] = llm._core.executor.rpc("timings")
        totals: dict[str, int] = {}
        for name, _, nanoseconds in timings:
            totals[name] = totals.get(name, 0) + nanoseconds
        shown = sorted(totals.items(), key=lambda item: -item[1])[:9]
        print(side, ", ".join(f"{name} {t / num_tokens / 1e6:.2f} ms" for name, t in shown if t))
        llm._core.executor.rpc("profile", False)


if __name__ == "__main__":
    main()
