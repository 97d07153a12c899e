"""Weight formats of checkpoints, read without loss as `QuantizedWeight`.

Knows bytes and numbers; knows neither models nor kernels nor how a file is laid out. A new tensor
format is one function from raw array to `QuantizedWeight` and one line in `registry.FORMATS`; a new
quantization method, whose matrices are several tensors, is one file with a `Scheme` and one line in
`schemes.METHODS`.
"""

from galley.kernels.quantized import QuantizedWeight, concat_rows, interleave_rows
from galley.quant.gguf_blocks import BLOCKS
from galley.quant.gguf_iq import WIDENED
from galley.quant.registry import FORMATS, read_weight, to_float32
from galley.quant.scheme import ExpertScheme, Scheme, Tensors
from galley.quant.schemes import online_of, scheme_of

__all__ = [
    "BLOCKS",
    "FORMATS",
    "WIDENED",
    "ExpertScheme",
    "QuantizedWeight",
    "Scheme",
    "Tensors",
    "concat_rows",
    "interleave_rows",
    "online_of",
    "read_weight",
    "scheme_of",
    "to_float32",
]
