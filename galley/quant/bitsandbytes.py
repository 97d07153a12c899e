"""bitsandbytes checkpoints: NF4 and FP4 in blocks of inputs, and int8 with a scale per output.

A 4-bit layer of N outputs and K inputs has, of the values in row order,

    weight            uint8 [N * K / 2, 1]      codes, the first of two in the high bits
    weight.quant_map  float32 [16]              level of each code
    weight.absmax     float32 [N * K / block]   scale of each block
    weight.quant_state.bitsandbytes__nf4 or __fp4
                      uint8 [bytes]             JSON: blocksize, shape, quant_type, and of double
                                                quantization nested_blocksize and nested_offset

and value = absmax * level. With double quantization absmax is uint8, and

    absmax = weight.nested_quant_map[absmax] * weight.nested_absmax[block / nested_blocksize]
             + nested_offset

An 8-bit layer has int8 `weight` [N, K] and float32 `SCB` [N], and value = weight * SCB / 127.
Inputs are not rounded to int8: they are multiplied at 16 bits or more, as the library does with
those above its threshold. Layers that were skipped have dense weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.registry import read_weight, to_float32
from galley.quant.scheme import Tensors

_METHOD = "bitsandbytes"
_KINDS = ("nf4", "fp4")


class _State(msgspec.Struct, frozen=True):
    """Fields of a layer's `quant_state`."""

    blocksize: int
    shape: list[int] | None = None
    nested_blocksize: int = 256
    nested_offset: float = 0.0


class BitsAndBytes:
    """`Scheme` of bitsandbytes checkpoints; layers say themselves how they are stored."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        storage = config.get("bnb_4bit_quant_storage") or "uint8"
        if config.get("load_in_4bit") and storage != "uint8":
            raise ModelError(
                f"{_METHOD}: bnb_4bit_quant_storage is {storage!r}; 'uint8' is supported"
            )

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        if tensors.has(f"{name}.weight.absmax"):
            return _read_4bit(f"{name}.weight", shape, tensors)
        weight = tensors.use(f"{name}.weight", shape)
        if weight.dtype != "int8":
            return read_weight(weight)
        layout = f"{name}.weight_format"
        if tensors.has(layout) and tensors.use(layout, tensors.shape(layout)).data.any():
            raise ModelError(f"{_METHOD}: tensor {layout} is not 0, the layout of rows")
        scale = to_float32(tensors.use(f"{name}.SCB", shape[:1]))
        return QuantizedWeight(
            # Adding 128 to a signed byte is flipping its top bit.
            q=weight.data.view(np.uint8) ^ np.uint8(0x80),
            bits=8,
            group=0,
            zero=128,
            scale=scale[:, None] / np.float32(127),
            activations="as_is",
        )


def _read_4bit(name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
    n, k = shape
    state = _state(name, tensors)
    if state.shape is not None and state.shape[1:] != [k]:
        raise ModelError(
            f"{_METHOD}: {name} is of shape {state.shape}; the config asks for {[n, k]}"
        )
    if k % state.blocksize or k % 2:
        raise ModelError(
            f"{_METHOD}: {name} has {k} inputs, which are not whole blocks of {state.blocksize} "
            "values; a checkpoint with a smaller blocksize, or one that is not quantized, runs"
        )
    packed = _uint8(name, (n * k // 2, 1), tensors).reshape(n, k // 2)
    codes = np.empty((n, k), np.uint8)
    np.right_shift(packed, 4, out=codes[:, 0::2])
    np.bitwise_and(packed, 15, out=codes[:, 1::2])
    return QuantizedWeight(
        q=codes,
        bits=4,
        group=state.blocksize,
        **_scales(name, n, k // state.blocksize, state, tensors),
        table=to_float32(tensors.use(f"{name}.quant_map", (16,))),
        activations="as_is",
    )


def _scales(name: str, n: int, groups: int, state: _State, tensors: Tensors) -> dict[str, Any]:
    """Scales [n, groups] and what belongs to them, by fields of `QuantizedWeight`."""
    count = n * groups
    if not tensors.has(f"{name}.nested_absmax"):
        return {"scale": to_float32(tensors.use(f"{name}.absmax", (count,))).reshape(n, groups)}
    size = min(state.nested_blocksize, count)
    factors = to_float32(tensors.use(f"{name}.nested_absmax", (-(-count // size),)))
    return {
        "scale": _uint8(f"{name}.absmax", (count,), tensors).reshape(n, groups),
        "super_scale": factors[np.arange(count) // size].reshape(n, groups),
        "scale_table": to_float32(tensors.use(f"{name}.nested_quant_map", (256,))),
        "scale_base": np.full((n, 1), state.nested_offset, np.float32),
    }


def _state(name: str, tensors: Tensors) -> _State:
    names = [f"{name}.quant_state.bitsandbytes__{kind}" for kind in _KINDS]
    found = next((name for name in names if tensors.has(name)), None)
    if found is None:
        raise ModelError(f"the checkpoint has no tensor {' or '.join(names)}")
    text = _uint8(found, tensors.shape(found), tensors).tobytes()
    try:
        state = msgspec.json.decode(text, type=_State)
    except msgspec.DecodeError as error:
        raise ModelError(f"{_METHOD}: tensor {found}: {error}") from None
    if state.blocksize < 1 or state.nested_blocksize < 1:
        raise ModelError(f"{_METHOD}: tensor {found}: a blocksize is not positive")
    return state


def _uint8(name: str, shape: tuple[int, ...], tensors: Tensors) -> NDArray[np.uint8]:
    raw = tensors.use(name, shape)
    if raw.dtype != "uint8":
        raise ModelError(f"{_METHOD}: tensor {name} is {raw.dtype}; uint8 is needed")
    return raw.data
