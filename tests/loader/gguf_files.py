"""GGUF files for tests: written by the `gguf` package, which is also the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

#: A tiny Llama-like model: every key that the config is made from.
KEYS: dict[str, Any] = {
    "{arch}.context_length": 128,
    "{arch}.embedding_length": 64,
    "{arch}.block_count": 1,
    "{arch}.feed_forward_length": 96,
    "{arch}.attention.head_count": 4,
    "{arch}.attention.head_count_kv": 2,
    "{arch}.attention.layer_norm_rms_epsilon": np.float32(1e-5),
    "{arch}.rope.freq_base": np.float32(50000.0),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (32, 64),
    "output_norm.weight": (64,),
    "blk.0.attn_norm.weight": (64,),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.attn_k.weight": (32, 64),
    "blk.0.attn_v.weight": (32, 64),
    "blk.0.attn_output.weight": (64, 64),
    "blk.0.ffn_norm.weight": (64,),
    "blk.0.ffn_gate.weight": (96, 64),
    "blk.0.ffn_up.weight": (96, 64),
    "blk.0.ffn_down.weight": (64, 96),
}


@contextmanager
def plain_arrays() -> Iterator[None]:
    """Have the gguf package read plain arrays: it slices a file a million times, and slices of a
    memmap take three times as long."""
    mapped = np.memmap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "memmap", lambda *args, **how: mapped(*args, **how).view(np.ndarray))
        yield


def tiny_tensors(extra: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Random float32 tensors of the tiny model, equal at every call."""
    random = np.random.default_rng(1)
    made = {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    return made | dict(extra or {})


def write_gguf(
    path: Path,
    arch: str = "llama",
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    kind: gguf.GGMLQuantizationType | None = None,
    blocks: Mapping[str, tuple[gguf.GGMLQuantizationType, np.ndarray]] | None = None,
) -> Path:
    """Write the tiny model.

    Args:
        keys: replace or add keys ("{arch}" is filled in); a value of None leaves one out.
        tensors: float32 arrays; default: the tiny model's.
        kind: quantise the two-dimensional tensors.
        blocks: further tensors, each of a type and as it is stored.
    """
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**KEYS, **(keys or {})}.items():
        if value is not None:
            _add_key(writer, key.format(arch=arch), value)
    for name, values in (tiny_tensors() if tensors is None else tensors).items():
        if kind is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    for name, (stored, data) in (blocks or {}).items():
        writer.add_tensor(name, data, raw_dtype=stored)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file of what has been added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float | np.floating):
        writer.add_float32(key, float(value))
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
