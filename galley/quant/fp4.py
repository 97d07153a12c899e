"""E2M1 weights: four-bit floats with a scale per 16 or 32 inputs (NVFP4, MXFP4).

    NVFP4   scales of E4M3 per 16 inputs, times one float32 of the tensor
    MXFP4   scales that are powers of two per 32 inputs, stored as an exponent plus 127

Codes are bytes of two, the first in the low nibble. Inputs are not rounded to four bits: they are
multiplied at 16 bits or more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.gguf_nvfp4 import E2M1_DOUBLED
from galley.quant.registry import to_float32
from galley.quant.scheme import Tensors

NV_GROUP, MX_GROUP = 16, 32


def powers_of_two(exponents: NDArray[np.uint8], bias: int = 127) -> NDArray[np.float32]:
    """2 ** (exponent - bias)."""
    powers: NDArray[np.float32] = np.ldexp(np.float32(1), exponents.astype(np.int32) - bias)
    return powers


def mxfp4_weight(packed: NDArray[np.uint8], exponents: NDArray[np.uint8]) -> QuantizedWeight:
    """Of codes [N, K / 2] and exponents [N, K / 32]."""
    scale = powers_of_two(exponents, 128)  # levels are doubled
    return _weight(packed, MX_GROUP, scale, None)


def nvfp4_weight(
    packed: NDArray[np.uint8], scale: NDArray[Any], factor: np.float32
) -> QuantizedWeight:
    """Of codes [N, K / 2] and E4M3 scales [N, K / 16], all times `factor`."""
    factors = np.full((len(packed), 1), factor * np.float32(0.5), np.float32)  # levels are doubled
    return _weight(packed, NV_GROUP, scale, factors)


def _weight(
    packed: NDArray[np.uint8],
    group: int,
    scale: NDArray[Any],
    factors: NDArray[np.float32] | None,
) -> QuantizedWeight:
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, 0::2])
    np.right_shift(packed, 4, out=codes[:, 1::2])
    return QuantizedWeight(
        q=codes,
        bits=4,
        group=group,
        scale=scale,
        super_scale=factors,
        table=E2M1_DOUBLED,
        activations="as_is",
    )


def use_codes(
    method: str, name: str, shape: tuple[int, int], tensors: Tensors
) -> NDArray[np.uint8]:
    """The bytes of two codes of a weight [N, K] in tensor `name`."""
    n, k = shape
    raw = tensors.use(name, (n, k // 2) if tensors.shape(name) != shape else shape)
    if raw.dtype not in ("uint8", "float4_e2m1fn"):
        raise ModelError(f"{method}: tensor {name} is {raw.dtype}; uint8 is needed")
    return raw.data


def use_exponents(
    method: str, name: str, shape: tuple[int, int], tensors: Tensors
) -> NDArray[np.uint8]:
    """Exponents per 32 inputs of a weight [N, K] in tensor `name`."""
    n, k = shape
    _whole_groups(method, name, k, MX_GROUP)
    raw = tensors.use(name, (n, k // MX_GROUP))
    if raw.dtype not in ("uint8", "float8_e8m0fnu"):
        raise ModelError(f"{method}: tensor {name} is {raw.dtype}; uint8 is needed")
    exponents: NDArray[np.uint8] = raw.data.view(np.uint8)
    return exponents


def use_scales(method: str, name: str, shape: tuple[int, int], tensors: Tensors) -> NDArray[Any]:
    """E4M3 scales per 16 inputs of a weight [N, K] in tensor `name`."""
    n, k = shape
    _whole_groups(method, name, k, NV_GROUP)
    raw = tensors.use(name, (n, k // NV_GROUP))
    if raw.dtype != "float8_e4m3fn":
        raise ModelError(f"{method}: tensor {name} is {raw.dtype}; float8_e4m3fn is needed")
    return raw.data


def use_number(name: str, tensors: Tensors) -> np.float32:
    """The one number of tensor `name`. Raises ModelError if it has another size."""
    shape = tensors.shape(name) if tensors.has(name) else ()
    numbers = to_float32(tensors.use(name, shape if shape in ((), (1,)) else ()))
    return np.float32(numbers.reshape(()))


def _whole_groups(method: str, name: str, k: int, group: int) -> None:
    if k % group:
        raise ModelError(f"{method}: {name} is for {k} inputs, which are not groups of {group}")
