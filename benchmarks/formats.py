"""The default model in every weight format: perplexity, size and speed, as a table.

    python -m benchmarks.formats [--windows 4] [--no-speed] [--out FILE] [FORMAT ...]
                                                                               (make bench-formats)

Rows that FILE has are not measured again: a table that was interrupted is continued.

Each format's codes and scales are made from the float32 values of the built-in model by rounding to
the nearest level of a scale from the largest magnitude (GGUF's by `gguf`). `gap` compares its
perplexity with that of the dequantised values in float32: what the kernels' arithmetic costs. W8A8
also prescribes inputs, int8 with a scale per token: it is compared with that formula in PyTorch, in
float32 too. Types of GGUF with blocks of 256 do not fit this model, whose layers have 576 inputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from galley.config import ModelInfo
from galley.executor.local import LocalExecutor
from galley.loader import RawTensor
from galley.models.footprint import weight_bytes
from galley.quant import scheme_of
from galley.text import load_tokenizer
from tests.executor.toy import Toy
from tests.quant.tensors import TensorDict
from tests.runner.models import (
    TEXT,
    ArrayCheckpoint,
    Arrays,
    default_checkpoint,
    dequantised,
    in_format,
    open_runner,
    torch_model,
)
from tests.runner.test_quality import WINDOW, native_perplexity, torch_perplexity

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
#: End of the names of rows that are computed in float32, as with --dtype float32.
FLOAT32 = ", float32"
GGUF = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")
Tensors = dict[str, np.ndarray]
#: Suffix → array of a layer with these values [N, K].
Encode = Callable[[np.ndarray], Tensors]


def grouped(values: np.ndarray, group: int) -> np.ndarray:
    n, k = values.shape
    return values.reshape(n, -1, group or k)


def symmetric(values: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Signed codes [N, K] and scales [N, groups] of whole numbers."""
    parts = grouped(values, group)
    limit = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(parts).max(-1), 1e-8) / np.float32(limit)
    codes = np.round(parts / scale[..., None]).clip(-limit - 1, limit).astype(np.int8)
    return codes.reshape(values.shape), scale.astype(np.float32)


def asymmetric(values: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, ...]:
    """Codes [N, K], scales and zeros [N, groups]."""
    parts, limit = grouped(values, group), 2**bits - 1
    low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    scale = (np.maximum(high - low, 1e-8) / limit).astype(np.float16)
    wide = scale.astype(np.float32)
    zero = np.round(-low / wide).clip(0, limit)
    codes = np.round(parts / wide[..., None] + zero[..., None]).clip(0, limit)
    return codes.reshape(values.shape).astype(np.uint8), scale, zero.astype(np.uint8)


def int32_of(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, n] as int32 [rows, n * bits / 32], lowest bits first."""
    each = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    data = np.packbits(each.reshape(len(codes), -1), axis=-1, bitorder="little")
    return data.view(np.int32)


def gptq(bits: int, group: int) -> Encode:
    def encode(values: np.ndarray) -> Tensors:
        codes, scale, zero = asymmetric(values, bits, group)
        qzeros = int32_of((zero.T - 1) & np.uint8(2**bits - 1), bits)
        return {"qweight": int32_of(codes, bits).T, "scales": scale.T, "qzeros": qzeros}

    return encode


def awq(values: np.ndarray) -> Tensors:
    codes, scale, zero = asymmetric(values, 4, 64)

    def packed(rows: np.ndarray) -> np.ndarray:
        order = rows.reshape(len(rows), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return int32_of(order.reshape(rows.shape), 4)

    return {"qweight": packed(codes.T), "scales": scale.T, "qzeros": packed(zero.T)}


def hqq(values: np.ndarray) -> Tensors:
    parts = values.reshape(-1, 64)
    low, high = parts.min(-1, keepdims=True), parts.max(-1, keepdims=True)
    scale = np.maximum((high - low) / 15, 1e-8).astype(np.float16)
    zero = (-low / scale.astype(np.float32)).astype(np.float16)
    exact = parts / scale.astype(np.float32) + zero.astype(np.float32)
    codes = np.round(exact).clip(0, 15).astype(np.uint8)
    first, second = np.split(codes, 2)
    return {"W_q": first << 4 | second, "scale": scale, "zero": zero}


def packed_ints(bits: int, group: int) -> Encode:
    def encode(values: np.ndarray) -> Tensors:
        codes, scale = symmetric(values, bits, group)
        unsigned = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
        return {
            "weight_packed": int32_of(unsigned, bits),
            "weight_scale": scale.astype(ml_dtypes.bfloat16),
            "weight_shape": np.array(values.shape, np.int64),
        }

    return encode


def int8(values: np.ndarray) -> Tensors:
    codes, scale = symmetric(values, 8, 0)
    return {"weight": codes, "weight_scale": scale}


def bnb_int8(values: np.ndarray) -> Tensors:
    codes, scale = symmetric(values, 8, 0)
    return {"weight": codes, "SCB": scale[:, 0] * np.float32(127)}


def fp8(values: np.ndarray, scale: np.ndarray, each: np.ndarray) -> Tensors:
    return {"weight": (values / each).clip(-448, 448).astype(E4M3), "weight_scale": scale}


def fp8_tensor(values: np.ndarray) -> Tensors:
    scale = np.float32(np.abs(values).max() / 448)
    return fp8(values, np.array(scale), np.broadcast_to(scale, values.shape))


def fp8_channel(values: np.ndarray) -> Tensors:
    scale = (np.abs(values).max(1, keepdims=True) / 448).astype(np.float32)
    return fp8(values, scale, scale)


def fp8_blocks(values: np.ndarray) -> Tensors:
    n, k = values.shape
    rows, columns = -(-n // 128), -(-k // 128)
    padded = np.zeros((rows * 128, columns * 128), np.float32)
    padded[:n, :k] = np.abs(values)
    scale = padded.reshape(rows, 128, columns, 128).max((1, 3)) / np.float32(448)
    each = scale.repeat(128, axis=0)[:n].repeat(128, axis=1)[:, :k]
    tensors = fp8(values, scale, each)
    return {"weight": tensors["weight"], "weight_scale_inv": scale}


def nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Places of the nearest of sorted levels."""
    borders = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(borders, values).astype(np.uint8)


def fp4_bytes(parts: np.ndarray, scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """E2M1 codes of [N, groups, group] values over scales, two a byte."""
    ratio = parts / scale[..., None]
    codes = nearest(np.abs(ratio), E2M1) | (ratio < 0).astype(np.uint8) << 3
    codes = codes.reshape(shape)
    return codes[:, 0::2] | codes[:, 1::2] << 4


def nvfp4(values: np.ndarray) -> Tensors:
    parts = grouped(values, 16)
    divisor = np.float32(448 * 6 / np.abs(values).max())
    stored = (np.abs(parts).max(-1) / 6 * divisor).astype(E4M3)
    scale = np.maximum(stored.astype(np.float32) / divisor, 1e-12)
    return {
        "weight_packed": fp4_bytes(parts, scale, values.shape),
        "weight_scale": stored,
        "weight_global_scale": np.array([divisor]),
    }


def mxfp4(values: np.ndarray) -> Tensors:
    parts = grouped(values, 32)
    exponent = np.floor(np.log2(np.maximum(np.abs(parts).max(-1), 1e-30))) - 2
    packed = fp4_bytes(parts, np.float32(2) ** exponent, values.shape)
    return {"weight_packed": packed, "weight_scale": (exponent + 127).astype(np.uint8)}


def nf4(values: np.ndarray, nested: bool = False) -> Tensors:
    parts = values.reshape(-1, 64)
    absmax = np.abs(parts).max(-1).astype(np.float32)
    state: dict[str, Any] = {"blocksize": 64, "shape": list(values.shape), "quant_type": "nf4"}
    scales = {"weight.absmax": absmax}
    if nested:
        levels, offset = np.linspace(-1, 1, 256, dtype=np.float32), absmax.mean()
        state |= {"nested_blocksize": 256, "nested_offset": float(offset)}
        firsts = np.arange(0, len(absmax), 256)
        factors = np.maximum.reduceat(np.abs(absmax - offset), firsts)
        each = factors.repeat(256)[: len(absmax)]
        codes = nearest((absmax - offset) / each, levels)
        absmax = levels[codes] * each + offset
        scales = {
            "weight.absmax": codes,
            "weight.nested_absmax": factors,
            "weight.nested_quant_map": levels,
        }
    codes = nearest(parts / absmax[:, None], NF4).reshape(-1, 2)
    return {
        "weight": (codes[:, :1] << 4 | codes[:, 1:]),
        **scales,
        "weight.quant_map": NF4,
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }


def compressed(layout: str, inputs: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {**group, "input_activations": inputs}},
    }


def gptq_config(bits: int, group: int) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group}


_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
_INT: dict[str, Any] = {"type": "int"}
_FLOAT: dict[str, Any] = {"type": "float"}
#: Name → the checkpoint's `quantization_config`, and what makes a layer's tensors.
METHODS: dict[str, tuple[dict[str, Any], Encode]] = {
    "GPTQ 2 bits, groups of 32": (gptq_config(2, 32), gptq(2, 32)),
    "GPTQ 3 bits, groups of 64": (gptq_config(3, 64), gptq(3, 64)),
    "GPTQ 4 bits, groups of 64": (gptq_config(4, 64), gptq(4, 64)),
    "GPTQ 8 bits, groups of 64": (gptq_config(8, 64), gptq(8, 64)),
    "AWQ, groups of 64": ({"quant_method": "awq", "bits": 4, "group_size": 64}, awq),
    "HQQ 4 bits, groups of 64": (
        {"quant_method": "hqq", "quant_config": {"nbits": 4, "group_size": 64, "axis": 1}},
        hqq,
    ),
    "W4A16, groups of 32": (
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=32, **_INT),
        packed_ints(4, 32),
    ),
    "W8A16": (
        compressed("pack-quantized", num_bits=8, strategy="channel", **_INT),
        packed_ints(8, 0),
    ),
    "W8A8": (
        compressed("int-quantized", _TOKEN, num_bits=8, strategy="channel", **_INT),
        int8,
    ),
    f"W8A8{FLOAT32}": (
        compressed("int-quantized", _TOKEN, num_bits=8, strategy="channel", **_INT),
        int8,
    ),
    "FP8 per tensor": ({"quant_method": "fp8"}, fp8_tensor),
    "FP8 per output": (
        compressed("float-quantized", num_bits=8, strategy="channel", **_FLOAT),
        fp8_channel,
    ),
    "FP8 blocks of 128": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8_blocks),
    "NVFP4": (
        compressed(
            "nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16, **_FLOAT
        ),
        nvfp4,
    ),
    "MXFP4, compressed-tensors": (
        compressed("mxfp4-pack-quantized", num_bits=4, strategy="group", group_size=32, **_FLOAT),
        mxfp4,
    ),
    "bitsandbytes NF4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4),
    "bitsandbytes NF4, double": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        functools.partial(nf4, nested=True),
    ),
    "bitsandbytes int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb_int8),
}


def in_method(model_info: ModelInfo, arrays: Arrays, name: str) -> ArrayCheckpoint:
    """The model with its projections in a method; embeddings and norms stay float32."""
    config, encode = METHODS[name]
    tensors: dict[str, RawTensor] = {}
    for key, values in arrays.items():
        made = {"weight": values}
        layer = key.removesuffix(".weight")
        if layer.endswith("_proj"):
            made = encode(values)
        for kind, array in made.items():
            full = f"{layer}.{kind}" if key.endswith(".weight") else key
            array = np.ascontiguousarray(array)
            tensors[full] = RawTensor(full, array.shape, array.dtype.name, array)
    hf_config = {**model_info.hf_config, "quantization_config": config}
    method = config["quant_method"]
    info = dataclasses.replace(model_info, hf_config=hf_config, quantization=method)
    return ArrayCheckpoint(info, tensors)


def values_of(checkpoint: ArrayCheckpoint, arrays: Arrays) -> Arrays:
    """The dequantised values of a checkpoint with the tensors of `arrays`."""
    scheme = scheme_of(checkpoint.model_info)
    tensors = TensorDict(*(checkpoint.tensor(name) for name in checkpoint.names()))
    values = dict(arrays)
    for key, array in arrays.items():
        if array.ndim == 2:
            layer = key.removesuffix(".weight")
            values[key] = scheme.read(layer, array.shape, tensors).to_float32()
    return values


def tokens_per_second(
    checkpoint: ArrayCheckpoint, streams: int, prompt: list[int], dtype: str
) -> float:
    """Of greedy decoding, all streams together."""
    runner = open_runner(
        checkpoint,
        max_num_seqs=streams,
        max_model_len=128,
        kv_cache_memory_bytes=1 << 30,
        dtype=dtype,
    )
    toy = Toy(LocalExecutor(runner), streams, 128)
    sequences = [toy.add(i, prompt) for i in range(streams)]
    toy.generate(sequences, 4, budget=2048)
    steps = 40 if streams == 1 else 12
    start = time.perf_counter()
    toy.generate(sequences, steps, budget=2048)
    return streams * steps / (time.perf_counter() - start)


def rounded_inputs(x: torch.Tensor) -> torch.Tensor:
    """float32 [..., K] as int8 with a scale per token, dequantised: the inputs of W8A8."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / scale).round() * scale


def int8_perplexity(info: ModelInfo, values: Arrays, windows: np.ndarray) -> float:
    """Perplexity of W8A8 as it is defined: by PyTorch, in float32."""
    model = torch_model(info, values)
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(lambda _, args: (rounded_inputs(args[0]),))
    return torch_perplexity(model, windows)


def reference(name: str, info: ModelInfo, values: Arrays, windows: np.ndarray) -> float:
    """Perplexity of the format's definition in float32."""
    if name.startswith("W8A8"):
        return int8_perplexity(info, values, windows)
    return native_perplexity(in_format(info, values, "float32"), windows, dtype="float32")


def row(
    name: str, checkpoint: ArrayCheckpoint, arrays: Arrays, windows: np.ndarray, speed: bool
) -> str:
    dtype = "float32" if name.endswith(FLOAT32) else "bfloat16"
    perplexity = native_perplexity(checkpoint, windows, dtype=dtype)
    info = default_checkpoint().model_info
    want = reference(name, info, values_of(checkpoint, arrays), windows)
    layers = [key for key, array in arrays.items() if array.ndim == 2]
    bits = 8 * weight_bytes(checkpoint, "bf16") / sum(arrays[key].size for key in layers)
    gap = 100 * (perplexity / want - 1)
    text = f"| {name} | {perplexity:.3f} | {gap:+.2f} % | {bits:.2f} |"
    prompt = windows[0, :16].tolist()
    for streams in (1, 64) if speed else ():
        text += f" {tokens_per_second(checkpoint, streams, prompt, dtype):.0f} |"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("formats", nargs="*", metavar="FORMAT")
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens (default 4)")
    parser.add_argument("--no-speed", action="store_true", help="perplexity and size alone")
    parser.add_argument("--out", type=Path, help="append rows to this file, and skip those in it")
    options = parser.parse_args()
    default = default_checkpoint()
    arrays, info = dequantised(default), default.model_info
    ids = load_tokenizer(Path(info.source)).encode(TEXT.read_text(encoding="utf-8"))
    windows = np.array(ids[: options.windows * WINDOW]).reshape(-1, WINDOW)
    speeds = () if options.no_speed else ("tokens/s, 1 stream", "64 streams")
    columns = ("format", "perplexity", "gap", "bits a weight", *speeds)
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    out: Path | None = options.out
    known = out.read_text().splitlines() if out and out.exists() else []
    done = {line.split(" | ")[0].removeprefix("| "): line for line in known}
    for name in options.formats or ("bfloat16", *GGUF, *METHODS):
        if name in done:
            print(done[name], flush=True)
            continue
        if name in METHODS:
            checkpoint = in_method(info, arrays, name)
        elif name in (*GGUF, "bfloat16"):
            checkpoint = in_format(info, arrays, name)
        else:
            parser.error(f"no format {name!r}; {', '.join(('bfloat16', *GGUF, *METHODS))}")
        line = row(name, checkpoint, arrays, windows, not options.no_speed)
        print(line, flush=True)
        if out:
            with out.open("a") as f:
                f.write(line + "\n")


if __name__ == "__main__":
    main()
