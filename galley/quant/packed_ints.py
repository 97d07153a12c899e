"""Codes that lie in int32 numbers, lowest bits first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError

if TYPE_CHECKING:
    from galley.loader.tensor import RawTensor


def int32_of(method: str, raw: RawTensor) -> NDArray[np.int32]:
    """The tensor's numbers. Raises ModelError, which begins with `method`, for another dtype."""
    if raw.dtype != "int32":
        raise ModelError(f"{method}: tensor {raw.name} is {raw.dtype}; int32 is needed")
    return raw.data


def unpack_ints(numbers: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """int32 [rows, n] → uint8 codes [rows, n * 32 / bits], of 2, 3, 4 or 8 bits.

    Codes of 3 bits lie one after the other, across the borders of numbers.
    """
    data = np.ascontiguousarray(numbers, "<i4").view(np.uint8)
    if bits == 8:
        return data
    if bits == 2:
        pairs = (data[..., None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
        return pairs.astype(np.uint8, copy=False).reshape(len(data), -1)
    if bits == 3:
        each = np.unpackbits(data, axis=-1, bitorder="little").reshape(len(data), -1, 3)
        packed: NDArray[np.uint8] = np.packbits(each, axis=-1, bitorder="little")[..., 0]
        return packed
    codes = np.empty((len(data), 2 * data.shape[1]), np.uint8)
    np.bitwise_and(data, 15, out=codes[:, 0::2])
    np.right_shift(data, 4, out=codes[:, 1::2])
    return codes
