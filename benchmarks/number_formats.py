"""The tables of KV-cache formats and of online quantization in docs/quantization.md.

    python -m benchmarks.number_formats kv|online [MODEL] [--windows N] [--context N] [--rounds N]

MODEL is a 16-bit checkpoint for `online`; by default the built-in model's weights, as bfloat16.
Perplexity is that of the text of the tests, in windows of 1,024 tokens. Decode is one step of a
sequence with a long context on one thread; each round times all formats in turn, and the ratio to
bfloat16 is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np

from galley import LLM, SamplingParams, TokensPrompt
from galley.config import LoadConfig, ModelConfig
from galley.loader import open_checkpoint, resolve_source
from galley.planning.steps import Shape, StepBench
from galley.quant import to_float32

TEXT = Path(__file__).parents[1] / "tests" / "data" / "opticks.txt"
KV_FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"kv_cache_dtype": "bfloat16"},
    "fp8_e4m3": {"kv_cache_dtype": "fp8"},
    "fp8_e5m2": {"kv_cache_dtype": "fp8_e5m2"},
    "fp8_per_token_head": {"kv_cache_dtype": "fp8_per_token_head"},
    "int8_per_token_head": {"kv_cache_dtype": "int8_per_token_head"},
}
ONLINE = (None, "int8", "fp8", "fp8_per_tensor", "int4", "bitsandbytes")
WINDOW = 1024


def token_ids(count: int) -> list[list[int]]:
    """Windows of the text, by the built-in model's tokenizer."""
    from galley.text import load_tokenizer

    source = open_checkpoint(resolve_source(ModelConfig(), LoadConfig())).model_info.source
    ids = load_tokenizer(Path(source)).encode(TEXT.read_text())[: count * WINDOW]
    windows: list[list[int]] = np.array(ids).reshape(count, WINDOW).tolist()
    return windows


def perplexity(llm: LLM, windows: list[list[int]]) -> float:
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    total, count = 0.0, 0
    for window in windows:
        prompt: TokensPrompt = {"prompt_token_ids": window}
        known = llm.generate([prompt], params, use_tqdm=False)[0].prompt_logprobs
        assert known is not None
        for token, row in zip(window[1:], known[1:], strict=True):
            assert row is not None
            total += row[token].logprob
            count += 1
    return float(np.exp(-total / count))


def open_llm(model: str, **flags: Any) -> LLM:
    limits: dict[str, Any] = {
        "max_model_len": WINDOW + 1,
        "max_num_seqs": 1,
        "skip_tokenizer_init": True,
    }
    return LLM(model, **limits, **flags)


def write_bfloat16(folder: Path) -> None:
    """The built-in model's weights as a Hugging Face checkpoint."""
    checkpoint = open_checkpoint(resolve_source(ModelConfig(), LoadConfig()))
    info = checkpoint.model_info
    config = {**info.hf_config, "architectures": [info.architecture], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    parts, end = [], 0
    for name in checkpoint.names():
        values = to_float32(checkpoint.tensor(name)).astype(ml_dtypes.bfloat16)
        parts.append(values)
        span = [end, end + values.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": span}
        end = span[1]
    head = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for values in parts:
            file.write(values.tobytes())


def decode(model: str, context: int, rounds: int) -> dict[str, float]:
    """The speed of a decode step's attention, relative to that of bfloat16."""
    shape = Shape(rows=1, context=context, new=1)
    engines = {
        name: StepBench({"model": model, "num_threads": 1, **flags}, [shape])
        for name, flags in KV_FORMATS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in KV_FORMATS}
    for _ in range(rounds):
        for name, engine in engines.items():
            timed = engine.operations(shape, 5)
            reads = [t.seconds for t in timed if t.node is not None and t.node.op == "attention"]
            times[name].append(sum(reads))
    base = times["bfloat16"]
    return {
        name: median(b / a for a, b in zip(own, base, strict=True)) for name, own in times.items()
    }


def kv_table(model: str, windows: list[list[int]], context: int, rounds: int) -> None:
    speed = decode(model, context, rounds)
    print("| --kv-cache-dtype | perplexity | bytes per token | tokens per GiB | attention |")
    print("|---|---|---|---|---|")
    for name, flags in KV_FORMATS.items():
        with open_llm(model, **flags) as llm:
            size = sum(group.bytes_per_token for group in llm._core.executor.groups)
            value = perplexity(llm, windows)
        print(f"| `{name}` | {value:.3f} | {size:,} | {2**30 // size:,} | {speed[name]:.2f} × |")


def online_table(model: str, windows: list[list[int]]) -> None:
    print("| --quantization | perplexity | MiB of weights |")
    print("|---|---|---|")
    for name in ONLINE:
        with open_llm(model, quantization=name) as llm:
            [memory] = llm._core.executor.rpc("memory")
            value = perplexity(llm, windows)
        print(f"| `{name}` | {value:.3f} | {memory['weights'] / 2**20:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("kv", "online"))
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    windows = token_ids(args.windows)
    if args.table == "kv":
        kv_table(args.model, windows, args.context, args.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            write_bfloat16(Path(folder))
        online_table(args.model or folder, windows)


if __name__ == "__main__":
    main()
