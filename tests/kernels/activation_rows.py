"""Rows of activations in the kernels' number formats (csrc/linear.h), made and read in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.kernels import _native
from tests.kernels.native_harness import BF16, F32, Q8, Q8_ROW, Native, aligned

Rows = NDArray[np.uint8]
F32Array = NDArray[np.float32]


def pad_columns(x: NDArray[Any], multiple: int) -> NDArray[Any]:
    return np.pad(x, ((0, 0), (0, -x.shape[1] % multiple)))


def quantized(x: F32Array, kind: int, threads: int = 1) -> Rows:
    """Rows of a kind, [m, bytes], as the op `quantize` makes them of float32 [m, k]."""
    m, k = x.shape
    out = aligned((m, _native.activation_bytes(kind, k)), np.uint8)
    native = Native(max_len=m, threads=threads)
    native.add("quantize", {"x": np.ascontiguousarray(x), "out": out}, k=k, out_kind=kind)
    native.run([m])
    return out


def values(rows: Rows, kind: int, k: int) -> F32Array:
    """What rows of a kind stand for, float32 [m, k]."""
    m = len(rows)
    if kind == F32:
        return rows.view(np.float32).reshape(m, k)
    if kind == BF16:
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(m, k)
    q, scale, _sums = parts(rows, kind, k)
    return (q.reshape(m, scale.shape[1], -1) * scale[..., None]).reshape(m, -1)[:, :k]


def parts(rows: Rows, kind: int, k: int) -> tuple[NDArray[np.int8], F32Array, NDArray[np.int32]]:
    """Codes [m, k'], scales [m, n] and sums ([m, n]; of q8 twice that: sums, then halves)."""
    assert kind in (Q8, Q8_ROW)
    padded = -(-k // 32) * 32
    scales = padded // 32 if kind == Q8 else 1
    sums = 2 * scales if kind == Q8 else 1
    q = rows[:, :padded].view(np.int8)
    scale = np.ascontiguousarray(rows[:, padded : padded + 4 * scales]).view(np.float32)
    start = padded + 4 * scales
    total = np.ascontiguousarray(rows[:, start : start + 4 * sums]).view(np.int32)
    return q, scale, total
