"""Rows of activations in the kernels' number formats (csrc/linear.h), made and read in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.kernels import _native
from tests.kernels.native_harness import BF16, F32, Q8, Q8_ROW, Q16, Native, aligned

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
    """The values of rows of a kind, float32 [m, k]."""
    m = len(rows)
    if kind == F32:
        return rows.view(np.float32).reshape(m, k)
    if kind == BF16:
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(m, k)
    q, scale, _sums = parts(rows, kind, k)
    return (q.reshape(m, scale.shape[1], -1) * scale[..., None]).reshape(m, -1)[:, :k]


def parts(
    rows: Rows, kind: int, k: int
) -> tuple[NDArray[np.int32], F32Array, dict[str, NDArray[Any]]]:
    """Codes [m, k'], scales [m, n] and what else there is per scale, by name, each [m, n]."""
    assert kind in (Q8, Q8_ROW, Q16)
    m, padded = len(rows), -(-k // 32) * 32
    end = 2 * padded if kind == Q16 else padded
    q = rows[:, :end].view(np.int8).astype(np.int32)
    if kind == Q16:
        planes = q.reshape(m, -1, 2, 32)
        assert planes.min() >= -127
        q = (256 * planes[:, :, 0] + planes[:, :, 1]).reshape(m, padded)
    n = 1 if kind == Q8_ROW else padded // 32
    fields: dict[str, Any] = {"scale": np.float32, "sum": np.int32}
    if kind != Q8_ROW:
        fields = {
            "scale": np.float32,
            "start": np.int32,
            "scaled_sum": np.float32,
            "half": np.int32,
        }
    columns = {}
    for i, (name, dtype) in enumerate(fields.items()):
        at = end + 4 * n * i
        columns[name] = np.ascontiguousarray(rows[:, at : at + 4 * n]).view(dtype)
    return q, columns.pop("scale"), columns
