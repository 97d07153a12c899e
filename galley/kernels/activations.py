"""Choice of activation precision for a linear layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from galley.config.engine import QuantizedActivations
from galley.kernels import _native
from galley.kernels.caches import largest_cache
from galley.kernels.program import Kind
from galley.kernels.weight_format import SUPER_DTYPES, WeightFormat
from galley.kernels.weights import PackedWeight


def activation_kind(weight: WeightFormat, quantized: QuantizedActivations) -> Kind:
    """Number format of the activations that are multiplied with a weight of this format.

    Dense weights take activations of their own format, and so do weights whose format prescribes
    int8 with one scale per token. Weights of "bf16" take that where AMX multiplies it, levels of
    integers unless a width is named; with "bf16" those do whose format leaves the choice ("group").
    Other tables of floating-point levels take float32. All other codes are multiplied with integers
    of 8 or 16 bits with a scale per 32. With "auto" these are 16 bits, whose rounding error is far
    below that of 16-bit floats, except where the format leaves the choice and the error of the
    weights is larger than that of 8 bits: up to four bits without offsets.
    """
    if weight.is_dense:
        return Kind.f32 if weight.name == "f32" else Kind.bf16
    if weight.activations == "token":
        return Kind.q8_row
    is_float = weight.table == "floats"
    if (
        (weight.activations == "bf16" or (quantized == "bf16" and _chooses_bf16(weight)))
        and _native.isa() == "amx"
        and (is_float or quantized in ("auto", "bf16"))
    ):
        return Kind.bf16
    if is_float:
        return Kind.f32
    if quantized in ("auto", "bf16"):
        coarse = weight.name in ("i1", "t2", "i2", "i3", "i4") and weight.offset == "zero"
        return Kind.q8 if coarse and weight.activations == "group" else Kind.q16
    return Kind.q8 if quantized == "int8" else Kind.q16


def suits_bf16(weights: Iterable[PackedWeight]) -> bool:
    """Whether rows of bf16 suit a model with these weights: AMX multiplies them, the weights are
    larger than the largest cache, and most of them have scales of two levels (K types of GGUF) and
    leave the choice. Up to eight rows of such weights from memory take about as long as with
    integers, more rows less. Of weights of other types, or from a cache, few rows take longer.
    """
    held = list(weights)
    total = sum(weight.num_bytes for weight in held)
    suited = [w for w in held if w.format.scale in SUPER_DTYPES and _chooses_bf16(w.format)]
    return (
        _native.isa() == "amx"
        and total > largest_cache()
        and 2 * sum(weight.num_bytes for weight in suited) > total
    )


def _chooses_bf16(weight: WeightFormat) -> bool:
    """Whether the format leaves the choice, and there is a kernel for rows of bf16."""
    integers = weight.table != "floats" and weight.offset != "zeros"
    return weight.activations == "group" and integers and weight.name not in ("i1", "t2")


def common_kind(weights: Sequence[WeightFormat], quantized: QuantizedActivations) -> Kind:
    """The kind of rows that are multiplied with weights of all these formats: that of each, or else
    integers of 16 bits with a scale per 32. Raises ValueError if dense weights and codes, or
    weights of float32 and bfloat16, are to share rows.
    """
    kinds = {activation_kind(weight, quantized) for weight in weights}
    if len(kinds) > 1:
        kinds = {activation_kind(weight, "int16") for weight in weights}
    if len(kinds) > 1:
        raise ValueError(f"no rows fit weights that ask for {sorted(kind.name for kind in kinds)}")
    return kinds.pop()
