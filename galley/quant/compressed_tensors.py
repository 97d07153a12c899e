"""compressed-tensors checkpoints: integers packed or as bytes, FP8 and FP4.

A quantized linear layer has, of N outputs and K inputs,

    pack-quantized     weight_packed int32 [N, K * bits / 32], codes of 4 or 8 bits, lowest first;
                       weight_shape int64 [2]
    int-quantized      weight int8 [N, K]
    float-quantized    weight float8_e4m3fn [N, K]
    naive-quantized    weight of either dtype
    mxfp8-quantized    weight float8_e4m3fn [N, K], scales per 32 inputs as exponents plus 127
    mxfp4-pack-quantized  weight_packed uint8 [N, K / 2], scales likewise
    nvfp4-pack-quantized  the same, scales float8_e4m3fn per 16 inputs, and
                       weight_global_scale [1], by which the scales are divided

    weight_scale       [1], [N, 1], [N, K / group] or [N / block, K / block]
    weight_zero_point  of asymmetric integers, shaped as the scales: int8, or if codes are packed
                       int32 [N * bits / 32, groups], packed along N

Packed codes and zeros are offset by 2**(bits - 1). value = scale * (code - zero), or scale * e4m3.

Inputs are rounded where the scheme says int8 (W8A8): with one scale per token, which is as exact as
the static scales that some checkpoints have, or more so. Inputs that a scheme rounds to FP8 or FP4
are multiplied at 16 bits or more, as those of weight-only schemes.

A layer belongs to the group of `config_groups` whose `targets` name it (its name or a regular
expression, then its class), of those that fit the dtypes and shapes of its tensors. Layers on the
`ignore` list have dense weights, which their tensors' dtype says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.fp4 import (
    MX_GROUP,
    NV_GROUP,
    mxfp4_weight,
    nvfp4_weight,
    use_codes,
    use_exponents,
    use_number,
    use_scales,
)
from galley.quant.fp8 import E4M3, e4m3_weight, is_block, use_input_scale
from galley.quant.input_order import input_order
from galley.quant.packed_ints import int32_of, unpack_ints
from galley.quant.registry import read_weight
from galley.quant.scales import ScaleBlock
from galley.quant.scheme import Tensors

_METHOD = "compressed-tensors"
_Kind = Literal["packed", "int8", "float8_e4m3fn", "mxfp4", "nvfp4"]
_FLOATS = (E4M3, "mxfp4", "nvfp4")
#: Format → the kinds of weights that it may have.
_KINDS: dict[str, tuple[_Kind, ...]] = {
    "pack-quantized": ("packed",),
    "int-quantized": ("int8",),
    "float-quantized": (E4M3,),
    "naive-quantized": ("int8", E4M3),
    "mxfp8-quantized": (E4M3,),
    "mxfp4-pack-quantized": ("mxfp4",),
    "nvfp4-pack-quantized": ("nvfp4",),
}
#: Bits of a code, and the inputs that share a scale where the kind says it.
_BITS: dict[_Kind, tuple[int, ...]] = {"packed": (4, 8), "mxfp4": (4,), "nvfp4": (4,)}
_GROUPS: dict[_Kind, int] = {"mxfp4": MX_GROUP, "nvfp4": NV_GROUP}
#: A group's format if the checkpoint's own is this one.
_MIXED = "mixed-precision"


@dataclass(frozen=True)
class _Group:
    """How the layers of one group are stored.

    Attributes:
        kind: int32 numbers of codes, or the dtype of `weight`.
        block: the values that share a scale.
        symmetric: there are no zero points.
        rounds_inputs: inputs are int8 with one scale per token.
        targets: names of layers, regular expressions after "re:", or classes.
    """

    kind: _Kind
    bits: int
    block: ScaleBlock
    symmetric: bool
    rounds_inputs: bool
    targets: tuple[str, ...] = ()

    def names(self, layer: str) -> bool:
        """Whether a target is the layer's name, the end of it, or an expression that matches it."""
        for target in self.targets:
            if target.startswith("re:"):
                if re.match(target[3:], layer):
                    return True
            elif f".{layer}".endswith(f".{target}"):
                return True
        return False


class CompressedTensors:
    """`Scheme` of compressed-tensors checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        groups = config.get("config_groups")
        sparsity = config.get("sparsity_config")
        if sparsity and _table("sparsity_config", sparsity).get("format", "dense") != "dense":
            raise ModelError(
                f"{_METHOD}: sparsity_config.format is {sparsity['format']!r}; only dense weights "
                "are supported"
            )
        if config.get("transform_config"):
            raise ModelError(f"{_METHOD}: transform_config is not supported")
        default = config.get("format")
        if default != _MIXED:
            _kinds("format", default)
        if not isinstance(groups, Mapping) or not groups:
            raise ModelError(f"{_METHOD}: config_groups is {groups!r}; an object is needed")
        self._groups = [
            _group(f"config_groups.{name}", _table(f"config_groups.{name}", group), default)
            for name, group in groups.items()
        ]

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        if tensors.has(f"{name}.weight_packed"):
            use_input_scale(name, tensors)
            if any(group.kind in ("mxfp4", "nvfp4") for group in self._groups):
                floats = _fp4(name, shape, tensors)
                if floats is not None:
                    return floats
            return self._packed(name, shape, tensors)
        weight = tensors.use(f"{name}.weight", shape)
        if weight.dtype not in ("int8", E4M3):
            return read_weight(weight)
        rows = tensors.shape(f"{name}.weight")[0]
        group = self._group_of(name, (rows, shape[1]), tensors, weight.dtype, 8)
        scale = group.block.read(f"{name}.weight_scale", shape, tensors)
        use_input_scale(name, tensors)
        if group.kind == E4M3:
            return e4m3_weight(weight.data, scale, group.block.inputs)
        zero = None
        if not group.symmetric:
            stored = tensors.use(f"{name}.weight_zero_point", group.block.shape(*shape))
            if stored.dtype != "int8":
                raise ModelError(
                    f"{_METHOD}: tensor {stored.name} is {stored.dtype}; int8 is needed"
                )
            zero = group.block.spread(stored.data, shape[0])
        return QuantizedWeight(
            q=_unsigned(weight.data),
            bits=8,
            group=group.block.inputs,
            zero=128 if zero is None else _unsigned(zero),
            scale=scale,
            activations="token" if group.rounds_inputs else "as_is",
        )

    def _packed(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        n, k = shape
        rows, numbers = (*tensors.shape(f"{name}.weight_packed"), 0, 0)[:2]
        bits = next((bits for bits in (4, 8) if numbers == _numbers(k, bits)), 0)
        group = self._group_of(name, (rows, k), tensors, "packed", bits)
        packed = int32_of(_METHOD, tensors.use(f"{name}.weight_packed", (n, numbers)))
        tensors.use(f"{name}.weight_shape", (2,))
        zero: int | NDArray[np.uint8] = 2 ** (bits - 1)
        if not group.symmetric:
            count = group.block.shape(n, k)[1]
            stored = tensors.use(f"{name}.weight_zero_point", (_numbers(n, bits), count))
            zero = unpack_ints(int32_of(_METHOD, stored).T, bits)[:, :n].T
        order = None
        if tensors.has(f"{name}.weight_g_idx"):
            order = input_order(
                _METHOD, f"{name}.weight_g_idx", k, group.block.inputs or k, tensors
            )
        codes = unpack_ints(packed, bits)[:, :k]
        return QuantizedWeight(
            q=codes if order is None else codes[:, order],
            bits=bits,
            group=group.block.inputs,
            zero=zero,
            scale=group.block.read(f"{name}.weight_scale", shape, tensors),
            order=order,
            activations="as_is",
        )

    def _group_of(
        self, name: str, shape: tuple[int, int], tensors: Tensors, kind: str, bits: int
    ) -> _Group:
        """The group of a layer, of its whole shape. Raises ModelError if it is none's."""
        scale = f"{name}.weight_scale"
        if not tensors.has(scale):
            raise ModelError(f"the checkpoint has no tensor {scale}")
        stored = tensors.shape(scale)
        symmetric = not tensors.has(f"{name}.weight_zero_point")
        for group in sorted(self._groups, key=lambda group: not group.names(name)):
            fits = (group.kind, group.bits, group.symmetric) == (kind, bits, symmetric)
            is_scalar = group.block == (0, 0) and stored in ((), (1,))
            if fits and (is_scalar or stored == group.block.shape(*shape)):
                return group
        zeros = "without" if symmetric else "with"
        raise ModelError(
            f"{_METHOD}: {name} of shape {list(shape)} has {kind} weights with scales of shape "
            f"{list(stored)}, {zeros} zero points, which none of config_groups prescribes"
        )


def _fp4(name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight | None:
    """A layer of four-bit floats; None if it is of integers."""
    packed, scale = f"{name}.weight_packed", f"{name}.weight_scale"
    if len(stored := tensors.shape(packed)) != 2 or stored[1] * 2 != shape[1]:
        return None
    codes = use_codes(_METHOD, packed, shape, tensors)
    if not tensors.has(f"{name}.weight_global_scale"):
        return mxfp4_weight(codes, use_exponents(_METHOD, scale, shape, tensors))
    divisor = use_number(f"{name}.weight_global_scale", tensors)
    scales = use_scales(_METHOD, scale, shape, tensors)
    return nvfp4_weight(codes, scales, np.float32(1) / divisor)


def _unsigned(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Signed bytes plus 128, which flips their top bit."""
    return codes.view(np.uint8) ^ np.uint8(0x80)


def _numbers(codes: int, bits: int) -> int:
    """int32 numbers that hold so many codes."""
    return -(-codes * bits // 32)


def _group(where: str, group: Mapping[str, Any], default: str | None) -> _Group:
    kinds = _kinds(f"{where}.format", group.get("format") or default)
    weights = _table(f"{where}.weights", group.get("weights"))
    inputs = _table(f"{where}.input_activations", group.get("input_activations"))
    if group.get("output_activations"):
        raise ModelError(f"{_METHOD}: {where}.output_activations is not supported")
    is_float = weights.get("type") == "float"
    kind: _Kind | None = next((kind for kind in kinds if (kind in _FLOATS) == is_float), None)
    if kind is None:
        _refuse(f"{where}.weights", "type", weights, "float" if kinds[0] in _FLOATS else "int")
    bits = weights.get("num_bits", 0)
    supported = _BITS.get(kind, (8,))
    if bits not in supported:
        _refuse(f"{where}.weights", "num_bits", weights, *supported)
    symmetric = weights.get("symmetric", True) is True
    if is_float and not symmetric:
        _refuse(f"{where}.weights", "symmetric", weights, True)
    if kind in _GROUPS:
        block = ScaleBlock(1, _GROUPS[kind])
        if weights.get("group_size") != block.inputs:
            _refuse(f"{where}.weights", "group_size", weights, block.inputs)
    else:
        block = _block(f"{where}.weights", weights)
    rounds = bool(inputs) and not is_float
    if rounds:
        if kind == "packed":
            raise ModelError(
                f"{_METHOD}: {where}.input_activations of packed weights are not supported; null is"
            )
        for key, values in (
            ("num_bits", (8,)),
            ("type", ("int",)),
            ("strategy", ("token", "tensor")),
        ):
            if inputs.get(key) not in values:
                _refuse(f"{where}.input_activations", key, inputs, *values)
        for key, value in {"strategy": "channel", "symmetric": True}.items():
            if weights.get(key) != value:
                _refuse(f"{where}.weights", key, weights, value)
    targets = group.get("targets") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ModelError(f"{_METHOD}: {where}.targets is not a list of strings")
    for target in targets:
        try:
            re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise ModelError(f"{_METHOD}: {where}.targets: {target!r}: {error}") from None
    return _Group(kind, bits, block, symmetric, rounds, tuple(targets))


def _block(where: str, weights: Mapping[str, Any]) -> ScaleBlock:
    strategy = weights.get("strategy")
    if strategy == "group":
        size = weights.get("group_size")
        if type(size) is not int or size < 1:
            raise ModelError(
                f"{_METHOD}: {where}.group_size is {size!r}; a positive number is needed"
            )
        return ScaleBlock(1, size)
    if strategy == "block":
        sizes = weights.get("block_structure")
        if not is_block(sizes):
            raise ModelError(
                f"{_METHOD}: {where}.block_structure is {sizes!r}; two positive numbers are needed"
            )
        return ScaleBlock(sizes[0], sizes[1])
    if strategy not in ("tensor", "channel"):
        raise ModelError(
            f"{_METHOD}: {where}.strategy is {strategy!r}; 'tensor', 'channel', 'group', 'block' "
            "is supported"
        )
    return ScaleBlock(1, 0) if strategy == "channel" else ScaleBlock(0, 0)


def _kinds(where: str, value: object) -> tuple[_Kind, ...]:
    if not isinstance(value, str) or value not in _KINDS:
        raise ModelError(f"{_METHOD}: {where} {value!r} is not supported; {', '.join(_KINDS)} are")
    return _KINDS[value]


def _table(where: str, value: object) -> Mapping[str, Any]:
    """An object of the configuration; null is an empty one."""
    if not isinstance(value, Mapping | None):
        raise ModelError(f"{_METHOD}: {where} is not an object")
    return value or {}


def _refuse(where: str, key: str, values: Mapping[str, Any], *supported: object) -> NoReturn:
    raise ModelError(
        f"{_METHOD}: {where}.{key} is {values.get(key)!r}; "
        f"{', '.join(map(repr, supported))} is supported"
    )
