"""Choice of activation precision for a linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from galley.config.engine import QuantizedActivations
from galley.kernels import _native
from galley.kernels.program import Kind
from galley.kernels.weight_format import WeightFormat


def activation_kind(weight: WeightFormat, quantized: QuantizedActivations) -> Kind:
    """Number format of the activations that are multiplied with a weight of this format.

    Dense weights take activations of their own format, and so do weights whose format prescribes
    int8 with one scale per token. Weights of "bf16" take that where AMX multiplies it: levels of
    integers with "auto" alone. Other tables of floating-point levels take float32. All other codes
    are multiplied with integers of 8 or 16 bits with a scale per 32. With "auto" these are 16 bits,
    whose rounding error is far below that of 16-bit floats, except where the format leaves the
    choice ("group") and the error of the weights is larger than that of 8 bits: up to four bits
    without offsets.
    """
    if weight.is_dense:
        return Kind.f32 if weight.name == "f32" else Kind.bf16
    if weight.activations == "token":
        return Kind.q8_row
    is_float = weight.table == "floats"
    if (
        weight.activations == "bf16"
        and _native.isa() == "amx"
        and (is_float or quantized == "auto")
    ):
        return Kind.bf16
    if is_float:
        return Kind.f32
    if quantized == "auto":
        coarse = weight.name in ("i1", "t2", "i2", "i3", "i4") and weight.offset == "zero"
        return Kind.q8 if coarse and weight.activations == "group" else Kind.q16
    return Kind.q8 if quantized == "int8" else Kind.q16


def common_kind(kinds: Sequence[Kind]) -> Kind:
    """The kind of rows that are multiplied with weights which ask for `kinds`: the most precise of
    integers with a scale per 32, or else float32. Raises ValueError if dense weights and codes, or
    weights of float32 and bfloat16, are to share rows.
    """
    first = kinds[0]
    if all(kind == first for kind in kinds):
        return first
    if all(kind in (Kind.q8, Kind.q16) for kind in kinds):
        return Kind.q16
    raise ValueError(f"no rows fit weights that ask for {sorted(kind.name for kind in kinds)}")
