"""HQQ checkpoints: codes of 1 to 8 bits with a scale and a fractional zero per group of inputs.

A quantized layer of N outputs and K inputs, cut along its inputs (axis 1) into R = N * K / group
rows, has, with P codes per number,

    W_q    [ceil(R / P), group]  uint8: P = 1 (8, 6 and 5 bits), 2, 4 or 8 codes, or int32: P = 10
                                 codes of 3 bits; code p of a number, highest bits first, is of row
                                 p * ceil(R / P) + its own. `view_as_float`: the same bytes
    scale  [R, 1]                float16, bfloat16 or float32
    zero   [R, 1]                the same

and its settings, one number a tensor: `nbits`, `group_size`, `axis` and others. Without them those
of `quant_config` hold.

value[n, k] = scale * code - scale * zero, products that are exact with 16-bit scales.
Inputs are not rounded. Layers without `W_q` are dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.registry import to_float32
from galley.quant.scheme import PlainScheme, Tensors

#: Bits of a code → bits that it takes in a number, and codes of a number.
_PACKED = {
    8: (8, 1),
    6: (8, 1),
    5: (8, 1),
    4: (4, 2),
    3: (3, 10),
    2: (2, 4),
    1.58: (2, 4),
    1: (1, 8),
}
#: Settings, and what is supported of those that change values.
_SETTINGS: dict[str, int | None] = {
    "axis": 1,
    "channel_wise": 1,
    "quant_scale": 0,
    "quant_zero": 0,
    **dict.fromkeys(("nbits", "group_size", "shape", "packing", "unpack_view_dtype")),
    **dict.fromkeys(("view_as_float", "compute_dtype", "offload_meta", "encoded_state_dict")),
    **dict.fromkeys(("stores_quant_config", "optimize", "round_zero")),
}


class HQQ:
    """`Scheme` of HQQ checkpoints; layers say themselves how they are stored."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        table = config.get("quant_config", config)
        table = table.get("weight_quant_params", table) if isinstance(table, Mapping) else {}
        self._config: Mapping[str, Any] = table if isinstance(table, Mapping) else {}

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        if not tensors.has(f"{name}.W_q"):
            return PlainScheme().read(name, shape, tensors)
        n, k = shape
        settings = self._settings(name, tensors)
        bits, group = settings.get("nbits"), settings.get("group_size") or k
        for key, value in (("nbits", bits), ("group_size", group)):
            if not isinstance(value, int | float):
                raise ModelError(f"hqq: {name}.{key} is {value!r:.80}, not a number")
        if bits not in _PACKED:
            raise ModelError(f"hqq: {name}.nbits is {bits}; {_names(_PACKED)} are supported")
        if group != int(group) or group < 1 or k % group:
            raise ModelError(f"hqq: {name} of shape {[n, k]} is not whole groups of {group}")
        rows, group = n * k // int(group), int(group)
        scale, zero = (
            to_float32(tensors.use(f"{name}.{kind}", (rows, 1))).reshape(n, -1)
            for kind in ("scale", "zero")
        )
        # Of a layer whose first rows are asked for, codes are packed with those of later rows.
        stored = tensors.shape(f"{name}.scale")[0]
        codes = _codes(name, bits, stored, group, tensors)[:rows]
        bits = 2 if bits == 1.58 else int(bits)
        weight = QuantizedWeight(
            q=codes.reshape(n, k),
            bits=bits,
            group=0 if group == k else group,
            scale=scale,
            activations="as_is",
        )
        whole = zero.clip(0, 2**bits - 1).astype(np.uint8)
        if np.array_equal(whole, zero):
            return replace(weight, zero=whole)
        return replace(weight, fraction=zero)

    def _settings(self, name: str, tensors: Tensors) -> Mapping[str, Any]:
        """The layer's numbers. Raises ModelError for one that is not supported."""
        settings = dict(self._config)
        for key in _SETTINGS:
            if not tensors.has(f"{name}.{key}"):
                continue
            raw = tensors.use(f"{name}.{key}", tensors.shape(f"{name}.{key}"))
            if raw.data.size == 1:
                settings[key] = round(float(raw.data.reshape(())), 2)
        for key, supported in _SETTINGS.items():
            if supported is not None and settings.get(key, supported) != supported:
                raise ModelError(
                    f"hqq: {name}.{key} is {settings[key]}; {supported} is supported. A GPTQ, AWQ "
                    "or GGUF checkpoint of the same model runs"
                )
        return settings


def _codes(name: str, bits: float, rows: int, group: int, tensors: Tensors) -> NDArray[np.uint8]:
    """Codes [rows, group]."""
    width, each = _PACKED[bits]
    key, packed_rows = f"{name}.W_q", -(-rows // each)
    dtype = np.dtype("<i4" if width == 3 else "u1")
    stored = tensors.shape(key)
    raw = tensors.use(key, stored)
    packed = np.ascontiguousarray(raw.data).reshape(-1).view(np.uint8)
    if len(stored) != 2 or packed.nbytes != packed_rows * group * dtype.itemsize:
        raise ModelError(
            f"hqq: tensor {key} of {raw.dtype} {list(stored)} does not hold {rows} rows of {group} "
            f"codes of {bits:g} bits"
        )
    numbers = packed.view(dtype).reshape(packed_rows, group)
    codes = np.empty((each, packed_rows, group), np.uint8)
    for i in range(each):
        codes[i] = numbers >> width * (each - 1 - i) & 2**width - 1
    return codes.reshape(-1, group)[:rows]


def _names(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)
