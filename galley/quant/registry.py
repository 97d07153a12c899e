"""The tensor formats, by the dtype name of a checkpoint's raw tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant import dense, gguf_blocks, gguf_iq, gguf_nvfp4

if TYPE_CHECKING:
    from galley.loader.tensor import RawTensor

#: Format name -> raw array in logical row order -> QuantizedWeight.
FORMATS: dict[str, Callable[[NDArray[Any]], QuantizedWeight]] = {
    "float32": dense.float32,
    "float16": dense.float32,
    "bfloat16": dense.bfloat16,
    "F32": dense.gguf_f32,
    "F16": dense.gguf_f16,
    "BF16": dense.bfloat16,
    "NVFP4": gguf_nvfp4.nvfp4,
    **gguf_blocks.BLOCKS,
    "IQ1_S": gguf_iq.iq1_s,
    "IQ1_M": gguf_iq.iq1_m,
    "IQ2_XXS": gguf_iq.iq2_xxs,
    "IQ2_XS": gguf_iq.iq2_xs,
    "IQ2_S": gguf_iq.iq2_s,
    "IQ3_XXS": gguf_iq.iq3_xxs,
    "IQ3_S": gguf_iq.iq3_s,
}


def read_weight(raw: RawTensor) -> QuantizedWeight:
    """The weight's codes and scales, without loss, rows in logical order.

    Raises:
        ModelError: the format is not one of `FORMATS`, or the array does not have the tensor's
            shape; names the tensor.
    """
    maker = FORMATS.get(raw.dtype)
    if maker is None:
        raise ModelError(
            f"tensor {raw.name}: weight format {raw.dtype} is not supported; "
            f"supported formats: {', '.join(FORMATS)}"
        )
    try:
        unpacked = maker(raw.data)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"tensor {raw.name}: {raw.dtype} data of shape {raw.data.shape} is not whole blocks"
        ) from error
    if unpacked.shape != tuple(raw.shape):
        raise ModelError(
            f"tensor {raw.name}: {raw.dtype} data holds shape {unpacked.shape}, "
            f"the checkpoint says {tuple(raw.shape)}"
        )
    return unpacked if raw.row_order is None else unpacked.take(raw.row_order)


def to_float32(raw: RawTensor) -> NDArray[np.float32]:
    """The tensor's values, float32 of its shape: equal to `gguf.dequantize` for GGUF types."""
    return read_weight(raw).to_float32()
