"""Cost of batch invariance: Galley's matrix products and attention compared with oneDNN, PyTorch,
and Galley kernels that split K or the KV cache by batch, which invariance forbids.

    make bench-invariance            builds those kernels into build/variants first

Shapes are the default model's. Many copies of the weights are used in turn, like a model's layers,
so that they are read from memory. Times are the best of many, in microseconds per call.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ROOT = Path(__file__).parents[1]
VARIANTS = ROOT / "build" / "variants"
#: (N, K) of the default model's layers and head, and how many of each it has.
LAYERS = {
    "qkv": (960, 576, 30),
    "o": (576, 576, 30),
    "gate_up": (3072, 576, 30),
    "down": (576, 1536, 30),
    "head": (49152, 576, 1),
}
ROWS = (1, 8, 64, 512)
HEADS, KV_HEADS, HEAD_DIM, LAYER_COUNT = 9, 3, 64, 30
F32, BF16, Q8 = 0, 1, 2
#: Larger than the caches.
SWEEP_BYTES = 96 << 20
SECONDS = 0.15


def load_variants() -> Any:
    """Load kernels that include the variants, instead of the serving ones."""
    modules = sorted(VARIANTS.glob("_native*.so"))
    if not modules:
        sys.exit("benchmarks.invariance: build/variants is missing; run `make bench-invariance`")
    name = "galley.kernels._native"
    spec = importlib.util.spec_from_file_location(name, modules[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def best(call: Callable[[], object], calls: int) -> float:
    """Best time in microseconds of one of the `calls` made by `call`."""
    call()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) / calls * 1e6


class Ours:
    """A program of ops over `rows` new tokens each of sequences that have `context` before them."""

    def __init__(self, native: Any, rows: Sequence[int], context: int, threads: int) -> None:
        slots, length = len(rows), context + max(rows)
        blocks = -(-length // 16)
        self.num_blocks = slots * blocks + 1
        ids = np.random.default_rng(0).permutation(np.arange(1, self.num_blocks, dtype=np.int32))
        self._table = np.ascontiguousarray(ids.reshape(slots, blocks))
        self._history = np.zeros((slots, length), np.int32)
        self._computed = np.full(slots, context, np.int32)
        self._columns = [
            np.arange(slots, dtype=np.int32),
            np.asarray(rows, np.int32),
            np.zeros(slots, np.int32),
            np.zeros(slots, np.int32),
        ]
        self._keep: list[Any] = []
        limits = {"tokens": sum(rows), "sequences": slots, "logits": slots}
        self._program = native.Program(native.Pool(threads), slots, limits)
        self._program.bind("history", "i4", self._history.ctypes.data, length)
        self._program.bind("num_computed", "i4", self._computed.ctypes.data)
        self._program.bind("block_table", "i4", self._table.ctypes.data, blocks)

    def add(self, op: str, arrays: dict[str, Any], numbers: dict[str, Any]) -> None:
        self._keep.append(arrays)
        self._program.add(op, {k: v.ctypes.data for k, v in arrays.items()}, numbers)

    def run(self) -> None:
        self._program.run(*(c.ctypes.data for c in self._columns), len(self._columns[0]))


def buffer(shape: tuple[int, ...], dtype: Any = np.uint8) -> Any:
    from galley.kernels.arena import aligned_bytes

    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return aligned_bytes(size).view(dtype).reshape(shape)


# ------------------------------------------------------------------------------ matrix products


@dataclass(frozen=True)
class Weights:
    """Copies of one weight and its activations in Galley's format, split along K."""

    packed: list[list[Any]]
    x: list[Any]
    x_kind: int


def weights(native: Any, n: int, k: int, rows: int, parts: int, int8: bool) -> Weights:
    from galley.kernels.weights import pack
    from galley.quant import QuantizedWeight

    rng = np.random.default_rng(0)
    kind = Q8 if int8 else BF16
    copies = max(1, SWEEP_BYTES // (n * k * (1 if int8 else 2)))
    each = k // parts
    packed, x = [], []
    for _ in range(parts):
        if int8:
            q = rng.integers(1, 256, (n, each), np.uint8)
            scale = np.full((n, each // 32), 0.01, np.float16)
            one = pack(QuantizedWeight(q=q, bits=8, group=32, zero=128, scale=scale), "bf16")
        else:
            dense = rng.standard_normal((n, each), np.float32).astype(ml_dtypes.bfloat16)
            one = pack(QuantizedWeight(dense=dense), "bf16")
        packed.append(one)
        x.append(_rows(native, rng.standard_normal((rows, each), np.float32), kind))
    bytes_of = [[one.data] + [one.data.copy() for _ in range(copies - 1)] for one in packed]
    # Copies start at multiples of 64 bytes too.
    aligned = [[_aligned(data) for data in datas] for datas in bytes_of]
    return Weights(
        [[(one, d) for d in ds] for one, ds in zip(packed, aligned, strict=True)], x, kind
    )


def _aligned(data: Any) -> Any:
    out = buffer(data.shape)
    out[...] = data
    return out


def _rows(native: Any, x: Any, kind: int) -> Any:
    """Activation rows of a kind, as the op `quantize` makes them."""
    rows, k = x.shape
    out = buffer((rows, native.activation_bytes(kind, k)))
    ours = Ours(native, [rows], 0, 1)
    ours.add("quantize", {"x": np.ascontiguousarray(x), "out": out}, {"k": k, "out_kind": kind})
    ours.run()
    return out


def our_linear(native: Any, n: int, k: int, rows: int, threads: int, int8: bool) -> float:
    w = weights(native, n, k, rows, 1, int8)
    out = buffer((rows, n), np.uint16)
    ours = Ours(native, [rows], 0, threads)
    for packed, data in w.packed[0]:
        numbers = {**packed.arguments(), "x_kind": w.x_kind, "out_kind": BF16}
        ours.add("linear", {"x": w.x[0], "weight": data, "out": out}, numbers)
    return best(ours.run, len(w.packed[0]))


def split_linear(native: Any, n: int, k: int, rows: int, threads: int, int8: bool) -> float:
    """Galley's kernel with K split into one part per thread, at least two."""
    parts = max(2, threads)
    w = weights(native, n, k, rows, parts, int8)
    partial = buffer((parts, rows, n), np.float32)
    out = buffer((rows, n), np.uint16)
    ours = Ours(native, [rows], 0, threads)
    for copy in zip(*w.packed, strict=True):
        arrays = {"out": partial}
        for i, (_, data) in enumerate(copy):
            arrays |= {f"weight{i}": data, f"x{i}": w.x[i]}
        numbers = {**copy[0][0].arguments(), "parts": parts, "x_kind": w.x_kind}
        ours.add("linear_split", arrays, numbers)
        ours.add("sum_parts", {"x": partial, "out": out}, {"parts": parts, "n": n})
    return best(ours.run, len(w.packed[0]))


def onednn_linear(n: int, k: int, rows: int, ahead: bool) -> float:
    """torch.nn.functional.linear in bfloat16; `ahead`: weights reordered for oneDNN beforehand."""
    import torch

    copies = max(1, SWEEP_BYTES // (n * k * 2))
    x = torch.randn(rows, k).bfloat16()
    weight = torch.randn(n, k).bfloat16()
    plain = [weight.clone() for _ in range(copies)]
    if not ahead:

        def call() -> None:
            for w in plain:
                torch.nn.functional.linear(x, w)

    else:
        ops = torch.ops.mkldnn
        ready = [ops._reorder_linear_weight(w, rows) for w in plain]

        def call() -> None:
            for w in ready:
                ops._linear_pointwise(x, w, None, "none", [], "")

    with torch.inference_mode():
        return best(call, copies)


def onednn_int8(n: int, k: int, rows: int) -> float:
    """oneDNN's int8 product: a scale per output and one for all of x, weights reordered ahead."""
    import torch

    ops = torch.ops.onednn
    copies = max(1, SWEEP_BYTES // (n * k))
    x = torch.randint(0, 255, (rows, k), dtype=torch.uint8)
    scales, zeros = torch.full((n,), 0.01), torch.zeros(n, dtype=torch.int32)
    weight = torch.randint(-127, 127, (n, k), dtype=torch.int8)
    ready = [ops.qlinear_prepack(weight.clone(), [rows, k]) for _ in range(copies)]

    def call() -> None:
        for w in ready:
            ops.qlinear_pointwise(
                *(x, 0.02, 128, w, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")
            )

    with torch.inference_mode():
        return best(call, copies)


# ------------------------------------------------------------------------------------ attention


def our_attention(
    native: Any, batch: int, new: int, context: int, threads: int, chunk: int
) -> float:
    """One layer; KV in as many layers' caches as a sweep takes. `chunk`: tokens of the cache that
    are computed as one; 512 is what serves."""
    ours = Ours(native, [new] * batch, context, threads)
    width = HEADS * HEAD_DIM
    stride = KV_HEADS * 2 * 16 * HEAD_DIM * 2
    layers = max(1, min(LAYER_COUNT, SWEEP_BYTES // (ours.num_blocks * stride)))
    q, out = buffer((batch * new, width), np.uint16), buffer((batch * new, width), np.uint16)
    q[...] = np.random.default_rng(0).standard_normal(q.shape).astype(ml_dtypes.bfloat16).view("u2")
    ours.add("kv_chunk", {}, {"size": chunk})
    numbers = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "q_kind": BF16}
    numbers |= {"kv_kind": BF16, "kv_block_stride": stride, "block_size": 16, "out_kind": BF16}
    values = np.random.default_rng(1).standard_normal(ours.num_blocks * stride // 2, "f4")
    halves = values.astype(ml_dtypes.bfloat16).view("u2")
    for _ in range(layers):
        kv = buffer((ours.num_blocks, stride // 2), np.uint16)
        kv[...] = halves.reshape(kv.shape)
        ours.add("attention", {"q": q, "kv": kv, "out": out}, {**numbers, "scale": HEAD_DIM**-0.5})
    return best(ours.run, layers)


def torch_attention(batch: int, new: int, context: int) -> float:
    """scaled_dot_product_attention in bfloat16 over contiguous K and V. When decoding, the query
    heads of a KV head go as queries, so that K and V are read once, as ours are."""
    import torch

    length = context + new
    size = batch * KV_HEADS * length * HEAD_DIM * 2 * 2
    layers = max(1, min(LAYER_COUNT, SWEEP_BYTES // size))
    attend = torch.nn.functional.scaled_dot_product_attention
    each = HEADS // KV_HEADS
    if new == 1:
        q = torch.randn(batch, KV_HEADS, each, HEAD_DIM).bfloat16()
        heads, causal = KV_HEADS, False
    else:
        q = torch.randn(batch, HEADS, new, HEAD_DIM).bfloat16()
        heads, causal = HEADS, True
    cache = torch.randn(2, batch, heads, length, HEAD_DIM).bfloat16()
    caches = [cache.clone() for _ in range(layers)]

    def call() -> None:
        for k, v in caches:
            attend(q, k, v, is_causal=causal)

    with torch.inference_mode():
        return best(call, layers)


# -------------------------------------------------------------------------------------- tables


def linear_table(native: Any, threads: int, int8: bool) -> list[str]:
    """Markdown table: microseconds by layer and rows, and the sum over the model."""
    theirs = "oneDNN int8" if int8 else "oneDNN, packed ahead"
    head = ["rows", "layer", "ours", "K cut by thread", *([] if int8 else ["oneDNN"]), theirs]
    lines = [_row(head), _row(["---:", "---", *["---:"] * (len(head) - 2)])]
    for rows in ROWS:
        sums = [0.0] * (len(head) - 2)
        for name, (n, k, count) in LAYERS.items():
            rows_here = min(rows, 64) if name == "head" else rows
            times = [
                our_linear(native, n, k, rows_here, threads, int8),
                split_linear(native, n, k, rows_here, threads, int8),
            ]
            if int8:
                times.append(onednn_int8(n, k, rows_here))
            else:
                times += [onednn_linear(n, k, rows_here, ahead) for ahead in (False, True)]
            sums = [total + count * t for total, t in zip(sums, times, strict=True)]
            shape = f"{name} {n} × {k}"
            lines.append(_row([str(rows_here), shape, *(f"{t:,.0f}" for t in times)]))
        lines.append(_row([str(rows), "**all layers**", *(f"**{t:,.0f}**" for t in sums)]))
    return lines


ATTENTION = [
    *((batch, 1, context) for batch, context in itertools.product((1, 8, 32), (511, 2047))),
    (1, 1, 8191),
    (1, 512, 0),
    (1, 2048, 0),
    (8, 256, 0),
]


def attention_table(native: Any, threads: int) -> list[str]:
    """Markdown table: microseconds of one layer."""
    head = ["sequences", "new tokens", "length", "ours", "KV cut by batch", "PyTorch"]
    lines = [_row(head), _row(["---:"] * len(head))]
    for batch, new, context in ATTENTION:
        length = context + new
        # A single sequence is split between threads; in a batch, each sequence is one piece.
        cut = (
            -(-length // (64 * threads)) * 64 if batch == 1 and new == 1 else -(-length // 64) * 64
        )
        times = [
            our_attention(native, batch, new, context, threads, 512),
            our_attention(native, batch, new, context, threads, cut),
            torch_attention(batch, new, context),
        ]
        lines.append(_row([str(batch), str(new), str(length), *(f"{t:,.0f}" for t in times)]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=["bf16", "int8", "attention"])
    args = parser.parse_args()
    native = load_variants()
    import torch

    torch.set_num_threads(args.threads)
    print(f"{native.isa()}, {args.threads} threads, PyTorch {torch.__version__}; microseconds\n")
    tables = {
        "bf16": lambda: linear_table(native, args.threads, int8=False),
        "int8": lambda: linear_table(native, args.threads, int8=True),
        "attention": lambda: attention_table(native, args.threads),
    }
    for name, table in tables.items():
        if args.only in (None, name):
            print(f"{name}\n\n" + "\n".join(table()) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
