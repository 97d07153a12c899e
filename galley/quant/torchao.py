"""torchao checkpoints whose tensors were flattened for safetensors.

The weight of a layer of N outputs and K inputs is stored as `_weight_qdata` and what belongs to it:

    int8     qdata int8 [N, K], scale [N, 1] or [N, K / group], zero_point of the same shape if any
    int4     qdata uint8 [N, K / 2], two codes a byte, the first in the low nibble, signed;
             scale and zero_point [K / group, N]
    float8   qdata float8_e4m3fn [N, K], scale [1, 1], [N, 1] or of blocks

    int8: value = (q - zero_point) * scale     int4: value = q * scale + zero_point
    float8: value = q * scale

Inputs are not rounded. Other tensors (tiled int4, pickled `.bin` files) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.fp8 import E4M3, e4m3_weight
from galley.quant.registry import read_weight, to_float32
from galley.quant.scheme import Tensors

_METHOD = "torchao"
_RUNS = "int8 and plain int4 weights and float8_e4m3fn, saved with safe_serialization, run"


class TorchAO:
    """`Scheme` of torchao checkpoints; layers say themselves how they are stored."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        pass

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        qdata = f"{name}._weight_qdata"
        if not tensors.has(qdata):
            return read_weight(tensors.use(f"{name}.weight", shape))
        n, k = shape
        stored = tensors.shape(qdata)
        if len(stored) != 2 or stored[1] not in (k, k // 2):
            raise ModelError(f"{_METHOD}: tensor {qdata} of shape {list(stored)} is tiled; {_RUNS}")
        raw = tensors.use(qdata, (n, stored[1]))
        if raw.dtype == "uint8" and stored[1] * 2 == k:
            return _int4(name, raw.data, shape, tensors)
        if raw.dtype == E4M3:
            scale, group = _scales(name, shape, stored[0], tensors)
            return e4m3_weight(raw.data, scale, group)
        if raw.dtype != "int8":
            raise ModelError(f"{_METHOD}: tensor {qdata} is {raw.dtype}; {_RUNS}")
        scale, group = _scales(name, shape, stored[0], tensors)
        zero: int | NDArray[np.uint8] = 128
        if tensors.has(f"{name}._weight_zero_point"):
            zeros = tensors.use(f"{name}._weight_zero_point", scale.shape).data
            zero = (zeros.astype(np.int64) + 128).clip(0, 255).astype(np.uint8)
        return QuantizedWeight(
            q=raw.data.view(np.uint8) ^ np.uint8(0x80),  # plus 128
            bits=8,
            group=group,
            zero=zero,
            scale=scale,
            activations="as_is",
        )


def _scales(
    name: str, shape: tuple[int, int], rows: int, tensors: Tensors
) -> tuple[NDArray[np.float32], int]:
    """Scales [n, groups] of a weight, and the inputs that share one; `rows` of the whole weight."""
    n, k = shape
    scale = f"{name}._weight_scale"
    if not tensors.has(scale):
        raise ModelError(f"the checkpoint has no tensor {scale}")
    stored = tensors.shape(scale)
    if stored in ((), (1,), (1, 1)):
        one = to_float32(tensors.use(scale, stored)).reshape(1, 1)
        return one.repeat(n, axis=0), 0
    each = stored[:1] if len(stored) == 1 else stored
    if each[0] != rows or (len(each) == 2 and k % max(1, each[1])):
        raise ModelError(
            f"{_METHOD}: tensor {scale} of shape {list(stored)} is not a scale per output or group "
            f"of inputs of a weight {[rows, k]}"
        )
    values = to_float32(tensors.use(scale, (n, *each[1:]))).reshape(n, -1)
    return values, 0 if values.shape[1] == 1 else k // values.shape[1]


def _int4(
    name: str, packed: NDArray[np.uint8], shape: tuple[int, int], tensors: Tensors
) -> QuantizedWeight:
    n, k = shape
    groups = tensors.shape(f"{name}._weight_scale")[0]
    if groups < 1 or k % groups:
        raise ModelError(f"{_METHOD}: {name} has {groups} groups for {k} inputs")
    codes = np.empty((n, k), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, 0::2])
    np.right_shift(packed, 4, out=codes[:, 1::2])
    return QuantizedWeight(
        q=codes ^ np.uint8(8),  # plus 8, of signed nibbles
        bits=4,
        group=k // groups,
        zero=8,
        scale=to_float32(tensors.use(f"{name}._weight_scale", (groups, n))).T,
        min=to_float32(tensors.use(f"{name}._weight_zero_point", (groups, n))).T,
        activations="as_is",
    )
