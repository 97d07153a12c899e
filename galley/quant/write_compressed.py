"""Writes the tensors of compressed-tensors layers: 16-bit matrices quantized by squared error.

A format says the tensors of a layer of N outputs and K inputs before any is computed, so that a
file's header can be written first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from galley.quant.online import (
    METHODS,
    Values,
    search_int4,
)

GROUP = 32
#: Suffix of a tensor's name → (safetensors' dtype, shape).
Layout = dict[str, tuple[str, tuple[int, ...]]]


class WrittenFormat(NamedTuple):
    """One form of compressed-tensors weights.

    Attributes:
        format, weights: as config.json has them.
        group: K must be a multiple.
        layout: (N, K) → the layer's tensors.
        encode: float32 [N, K] → their values, in the same order.
    """

    format: str
    weights: Mapping[str, Any]
    group: int
    layout: Callable[[int, int], Layout]
    encode: Callable[[Values], list[NDArray[Any]]]


def _bytes(x: Values) -> list[NDArray[Any]]:
    weight = METHODS["int8"]("", _dense(x), False)
    assert weight.q is not None
    assert weight.scale is not None
    shape = np.array(x.shape, np.int64)
    return [weight.q.view("<i4"), weight.scale.astype(np.float32), shape]


def _floats(x: Values) -> list[NDArray[Any]]:
    weight = METHODS["fp8"]("", _dense(x), False)
    assert weight.q is not None
    assert weight.scale is not None
    return [weight.q.view(ml_dtypes.float8_e4m3fn), weight.scale.astype(np.float32)]


def _packed(x: Values) -> list[NDArray[Any]]:
    codes, scale = search_int4(x, GROUP)
    pairs = codes[:, 0::2] | codes[:, 1::2] << 4
    return [pairs.view("<i4"), scale.astype(np.float16), np.array(x.shape, np.int64)]


def _dense(x: Values) -> Any:
    from galley.kernels.quantized import QuantizedWeight

    return QuantizedWeight(dense=x)


def _ints(bits: int, group: int, scale: str) -> Callable[[int, int], Layout]:
    """Packed integers with a scale per group of inputs; group 0: one per output."""
    return lambda n, k: {
        "weight_packed": ("I32", (n, k * bits // 32)),
        "weight_scale": (scale, (n, k // (group or k))),
        "weight_shape": ("I64", (2,)),
    }


#: --to → the form.
WRITTEN: dict[str, WrittenFormat] = {
    "int8": WrittenFormat(
        "pack-quantized",  # other libraries take bytes for weights whose inputs are int8 too
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        4,
        _ints(8, 0, "F32"),
        _bytes,
    ),
    "fp8": WrittenFormat(
        "float-quantized",
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
        1,
        lambda n, k: {"weight": ("F8_E4M3", (n, k)), "weight_scale": ("F32", (n, 1))},
        _floats,
    ),
    "int4": WrittenFormat(
        "pack-quantized",
        {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": GROUP,
        },
        GROUP,
        _ints(4, GROUP, "F16"),
        _packed,
    ),
}
