"""Weight formats of checkpoints, mapped without loss onto the few that kernels read.

Knows bytes and numbers; knows neither models nor kernels nor how a file is laid out. A new format
is one function from raw array to `QuantizedWeight` and one line in `registry.FORMATS`.
"""

from galley.kernels.quantized import QuantizedWeight, concat_rows, interleave_rows
from galley.quant.compressed_tensors import channel_int8
from galley.quant.registry import FORMATS, read_weight, to_float32
from galley.quant.schemes import check_quantization

__all__ = [
    "FORMATS",
    "QuantizedWeight",
    "channel_int8",
    "check_quantization",
    "concat_rows",
    "interleave_rows",
    "read_weight",
    "to_float32",
]
