"""ModelOpt checkpoints: FP8, MXFP8 and NVFP4, which the tensors of a layer say themselves.

A quantized layer of N outputs and K inputs has

    FP8     weight float8_e4m3fn [N, K], weight_scale: one number, [N] or [N, 1], or of blocks
            [N / 128, K / 128]
    MXFP8   weight float8_e4m3fn [N, K], weight_scale uint8 [N, K / 32], exponents plus 127
    NVFP4   weight uint8 [N, K / 2], weight_scale float8_e4m3fn [N, K / 16],
            weight_scale_2: one number

value = weight_scale (* weight_scale_2) * number. Inputs are not rounded, and their scales are not
used. Layers that are excluded have dense weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.fp4 import nvfp4_weight, use_codes, use_number, use_scales
from galley.quant.fp8 import E4M3, e4m3_weight, use_input_scale
from galley.quant.registry import read_weight
from galley.quant.scales import ScaleBlock
from galley.quant.scheme import Tensors

_METHOD = "modelopt"
_ALGORITHMS = (
    "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8", "NVFP4", "W4A16_NVFP4",
    "MIXED_PRECISION",
)  # fmt: skip


class ModelOpt:
    """`Scheme` of ModelOpt checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        table = config.get("quantization", config)
        algorithm = table.get("quant_algo") if isinstance(table, Mapping) else None
        if algorithm is not None and algorithm not in _ALGORITHMS:
            raise ModelError(
                f"{_METHOD}: quant_algo is {algorithm!r}; {', '.join(_ALGORITHMS)} are supported"
            )

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        weight, scale = f"{name}.weight", f"{name}.weight_scale"
        if not tensors.has(scale):
            return read_weight(tensors.use(weight, shape))
        use_input_scale(name, tensors)
        if tensors.has(f"{scale}_2"):
            return nvfp4_weight(
                use_codes(_METHOD, weight, shape, tensors),
                use_scales(_METHOD, scale, shape, tensors),
                use_number(f"{scale}_2", tensors),
            )
        raw = tensors.use(weight, shape)
        if raw.dtype != E4M3:
            raise ModelError(f"{_METHOD}: tensor {weight} is {raw.dtype}; {E4M3} is needed")
        rows = tensors.shape(weight)[0]
        block = _block(scale, (rows, shape[1]), tensors)
        return e4m3_weight(raw.data, block.read(scale, shape, tensors), block.inputs)


def _block(name: str, shape: tuple[int, int], tensors: Tensors) -> ScaleBlock:
    """The use of a scale of tensor `name`, of a weight of `shape` as a whole."""
    stored, (n, k) = tensors.shape(name), shape
    if stored in ((), (1,)):
        return ScaleBlock(0, 0)
    if stored == (n,):
        return ScaleBlock(1, 0)
    for block in (ScaleBlock(1, 0), ScaleBlock(1, 32), ScaleBlock(128, 128)):
        if stored == block.shape(n, k):
            return block
    raise ModelError(
        f"{_METHOD}: tensor {name} of shape {list(stored)} is not a scale per tensor, output, 32 "
        f"inputs or block of 128 of a weight {list(shape)}"
    )
