"""FP8: weights of E4M3 numbers with scales, and checkpoints whose `quant_method` is "fp8".

A quantized layer of such a checkpoint has float8_e4m3fn `weight` [N, K] and

    weight_scale_inv   [N / block, K / block]   with `weight_block_size`, as DeepSeek-V3
    weight_scale       one number               without it

value = scale * e4m3; the "inv" of the name is of the other direction. Codes and scales are kept as
they are. Inputs are not rounded to FP8: they are multiplied at 16 bits or more, and the
`input_scale` of static activations is not used. Layers that are not converted have dense weights,
which their tensors' dtype says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.kernels.weight_format import E4M3_VALUES
from galley.quant.registry import read_weight
from galley.quant.scales import ScaleBlock
from galley.quant.scheme import Tensors

#: RawTensor's dtype of E4M3 numbers.
E4M3: Final = "float8_e4m3fn"


def e4m3_weight(numbers: NDArray[Any], scale: NDArray[Any], group: int) -> QuantizedWeight:
    """value = scale * number, of float8_e4m3fn [N, K]."""
    return QuantizedWeight(
        q=numbers.view(np.uint8),
        bits=8,
        group=group,
        scale=scale,
        table=E4M3_VALUES,
        activations="as_is",
    )


def use_input_scale(name: str, tensors: Tensors) -> None:
    """Mark the scale and zero of a layer's static inputs, which are not used, as used."""
    for kind in ("input_scale", "input_zero_point", "input_global_scale"):
        if tensors.has(f"{name}.{kind}"):
            tensors.use(f"{name}.{kind}", tensors.shape(f"{name}.{kind}"))


class FP8:
    """`Scheme` of "fp8" checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        block = config.get("weight_block_size")
        if block is not None and not is_block(block):
            raise ModelError(
                f"fp8: weight_block_size is {block!r}; null or two positive numbers are needed"
            )
        self._block = ScaleBlock(block[0], block[1]) if block else ScaleBlock(0, 0)
        activations = config.get("activation_scheme", "dynamic")
        if activations not in ("dynamic", "static"):
            raise ModelError(
                f"fp8: activation_scheme is {activations!r}; 'dynamic', 'static' is supported"
            )

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        weight = tensors.use(f"{name}.weight", shape)
        if weight.dtype != E4M3:
            return read_weight(weight)
        kinds = ("weight_scale_inv", "weight_scale")
        kind = next((kind for kind in kinds if tensors.has(f"{name}.{kind}")), kinds[0])
        scale = self._block.read(f"{name}.{kind}", shape, tensors)
        use_input_scale(name, tensors)
        return e4m3_weight(weight.data, scale, self._block.inputs)


def is_block(sizes: object) -> TypeGuard[list[int]]:
    """Whether these are two positive whole numbers."""
    return (
        isinstance(sizes, list)
        and len(sizes) == 2
        and all(type(size) is int and size > 0 for size in sizes)
    )
