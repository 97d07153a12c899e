"""Loading a large checkpoint: speed, peak memory under a limit, and the second start, as a table.

    python -m benchmarks.loading [--gb 4] [bfloat16] [gptq] [int8] [1B] [3B] [8B]

Writes a random Llama checkpoint of that size to a temporary folder, in shards of 1 GB: 16-bit
numbers, 4-bit GPTQ, or 16-bit numbers that are started with --quantization int8; or a GGUF file in
Q4_K_M of Llama 3's shape, whose tokenizer is loaded too (`random_gguf`). The first start
packs it, with an empty cache of packed weights; later ones map what the first has written. Each is
a process of its own, timed from its start to its first token. The first, but of GGUF, is made again
with RLIMIT_DATA, which does not count mapped files, at `LIMIT` times the packed weights beyond what
the process has when loading begins: it would fail if it needed more. `peak` is the largest sum of
its anonymous and shared pages, beyond those at that time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks import random_gguf

LIMIT = 1.15
SHARD_BYTES = 10**9
GROUP = 128
PROMPT = list(range(1, 9))
SPELLINGS = {"bfloat16": "BF16", "float16": "F16", "int32": "I32"}


def sizes(gb: float, bits: float, hidden: int, vocab: int) -> dict[str, Any]:
    """Config of a Llama with so many GB of weights of so many bits; embeddings have 16."""
    intermediate = hidden * 11 // 4 // 256 * 256
    heads = hidden // 64
    layer = 2 * hidden * hidden * 5 // 4 + 3 * hidden * intermediate
    layers = max(1, round((gb * 1e9 - 4 * vocab * hidden) / (layer * bits / 8)))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def tiled(pool: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pool, repeated as often as that takes."""
    n, k = shape
    return (pool[: n * k] if n * k <= len(pool) else np.resize(pool, n * k)).reshape(shape)


def tensors(config: dict[str, Any], packed: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of every tensor."""
    rng = np.random.default_rng(0)
    pool = (rng.standard_normal(1 << 20) * 0.02).astype(ml_dtypes.bfloat16)
    words = rng.integers(-(2**31), 2**31, 1 << 20, np.int32)
    h, i, v = (config[f"{k}_size"] for k in ("hidden", "intermediate", "vocab"))
    kv = h * config["num_key_value_heads"] // config["num_attention_heads"]

    def matrix(name: str, n: int, k: int) -> Iterator[tuple[str, np.ndarray]]:
        if not packed:
            yield f"{name}.weight", tiled(pool, (n, k))
            return
        yield f"{name}.qweight", tiled(words, (k // 8, n))
        yield f"{name}.qzeros", np.full((k // GROUP, n // 8), 0x77777777, np.int32)
        yield f"{name}.scales", np.full((k // GROUP, n), 0.004, np.float16)
        yield f"{name}.g_idx", np.arange(k, dtype=np.int32) // GROUP

    yield "model.embed_tokens.weight", tiled(pool, (v, h))
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, n in (("q", h), ("k", kv), ("v", kv), ("o", h)):
            yield from matrix(f"{at}.self_attn.{name}_proj", n, h)
        for name, n, k in (("gate", i, h), ("up", i, h), ("down", h, i)):
            yield from matrix(f"{at}.mlp.{name}_proj", n, k)
        for norm in ("input", "post_attention"):
            yield f"{at}.{norm}_layernorm.weight", np.ones(h, ml_dtypes.bfloat16)
    yield "model.norm.weight", np.ones(h, ml_dtypes.bfloat16)
    yield "lm_head.weight", tiled(pool, (v, h))


def write(folder: Path, gb: float, packed: bool, hidden: int = 0, vocab: int = 32_000) -> int:
    """The checkpoint's bytes; by default its layers are those of a model of that size."""
    config = sizes(gb, 4.25 if packed else 16, hidden or (4096 if packed else 2048), vocab)
    if packed:
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
    (folder / "config.json").write_text(json.dumps(config))
    shard: dict[str, np.ndarray] = {}
    total = number = size = 0
    for name, array in tensors(config, packed):
        shard[name] = array
        size += array.nbytes
        if size >= SHARD_BYTES:
            _write_shard(folder / f"model-{number:05}.safetensors", shard)
            total, number, size, shard = total + size, number + 1, 0, {}
    _write_shard(folder / f"model-{number:05}.safetensors", shard)
    return total + size


def _write_shard(path: Path, arrays: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, array in arrays.items():
        entry = {"dtype": SPELLINGS[array.dtype.name], "shape": array.shape}
        header[name] = {**entry, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            np.ascontiguousarray(array).tofile(f)


def child(folder: str, options: dict[str, Any], limit: int) -> None:
    """One start: says what it has when loading begins, then its first token."""
    import galley.llm
    from galley import LLM, SamplingParams

    if limit:
        data = next(n for key, n in status("self").items() if key == "VmData")
        resource.setrlimit(resource.RLIMIT_DATA, (data + limit, data + limit))
    print(json.dumps({"before": anonymous("self"), "module": galley.llm.__name__}), flush=True)
    llm = LLM(model=folder, max_model_len=64, **options)
    params = SamplingParams(max_tokens=1, detokenize=False)
    llm.generate([PROMPT], params, use_tqdm=False)
    print(json.dumps({"ready": True}), flush=True)


def status(pid: int | str) -> dict[str, int]:
    """Bytes of each kind of memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    parts = [line.split() for line in lines if line.endswith(" kB")]
    return {part[0].rstrip(":"): int(part[1]) * 1024 for part in parts}


def anonymous(pid: int | str) -> int:
    memory = status(pid)
    return memory.get("RssAnon", 0) + memory.get("RssShmem", 0)


def start(folder: Path, model: Path, options: dict[str, Any], limit: int = 0) -> tuple[float, int]:
    """Seconds to the first token, and the peak of anonymous memory while loading.

    Args:
        folder: of the cache.
    """
    code = "import sys, json; from benchmarks.loading import child; child(*json.loads(sys.argv[1]))"
    argument = json.dumps([str(model), options, limit])
    begin = time.perf_counter()
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"GALLEY_CACHE_DIR": str(folder / "cache"), "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, argument],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    before = json.loads(process.stdout.readline())["before"]
    os.set_blocking(process.stdout.fileno(), False)
    peak, said = 0, ""
    while not said and process.poll() is None:
        try:
            peak = max(peak, anonymous(process.pid))
        except OSError:
            break
        said = process.stdout.readline()
        time.sleep(0.005)
    seconds = time.perf_counter() - begin
    if process.wait() or "ready" not in said:
        raise SystemExit("a start failed")
    return seconds, peak - before


def measure(kind: str, gb: float, rounds: int) -> str:
    options: dict[str, Any] = {
        "kv_cache_memory_bytes": 16 << 20,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 4,
    }
    if kind == "int8":
        options["quantization"] = "int8"
    with tempfile.TemporaryDirectory(prefix="loading-") as name:
        model = folder = Path(name)
        if kind in random_gguf.SHAPES:
            model = folder / "model.gguf"
            random_gguf.write(model, random_gguf.SHAPES[kind])
            size = model.stat().st_size
        else:
            options["skip_tokenizer_init"] = True
            size = write(folder, gb, kind == "gptq")
        seconds, peak = start(folder, model, options)
        [cached] = (folder / "cache").rglob("*.packed")
        packed = cached.stat().st_size
        if model == folder:  # of GGUF, logits of 128,256 tokens would count too
            cached.unlink()
            start(folder, model, options, int(LIMIT * packed))
        second = min(start(folder, model, options)[0] for _ in range(rounds))
    return (
        f"| {kind} | {size / 1e9:.2f} | {packed / 1e9:.2f} | {seconds:.1f} | {peak / packed:.3f} | "
        f"{second:.2f} | {seconds / second:.1f} × |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = [[], "bfloat16", "gptq", "int8", *random_gguf.SHAPES]
    parser.add_argument("kinds", nargs="*", choices=kinds, default=[])
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="later starts; the fastest counts")
    options = parser.parse_args()
    print("| format | file GB | packed GB | first start s | peak / packed | second s | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for kind in options.kinds or ("bfloat16", "gptq"):
        print(measure(kind, options.gb, options.rounds), flush=True)


if __name__ == "__main__":
    main()
