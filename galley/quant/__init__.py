"""Weight formats of checkpoints, mapped without loss onto the few that kernels read.

Knows bytes and numbers; knows neither models nor kernels nor how a file is laid out. A new format
is one function from raw array to `Unpacked` and one line in `registry.FORMATS`.
"""

from galley.quant.compressed_tensors import channel_int8
from galley.quant.registry import FORMATS, to_float32, unpack
from galley.quant.schemes import check_quantization
from galley.quant.unpacked import Unpacked, concat_rows, interleave_rows

__all__ = [
    "FORMATS",
    "Unpacked",
    "channel_int8",
    "check_quantization",
    "concat_rows",
    "interleave_rows",
    "to_float32",
    "unpack",
]
