"""In which number format activation rows meet a weight."""

from __future__ import annotations

from galley.config.engine import QuantizedActivations
from galley.kernels.program import Kind
from galley.kernels.weights import WeightFormat


def activation_kind(weight: WeightFormat, quantized: QuantizedActivations) -> Kind:
    """Kind of the rows that are multiplied with a weight of this format.

    Dense weights meet rows of their own format, and a weight with one scale per output meets rows
    with one scale, as checkpoints of that kind prescribe. Codes in groups meet integers of 8 or 16
    bits with a scale per 32. With "auto" these are 16 bits, whose rounding is lost in that of the
    weights, except where the weights' own is coarser than that of 8 bits: four bits without minima.
    """
    if weight.name == "f32":
        return Kind.f32
    if weight.name == "bf16":
        return Kind.bf16
    if weight.group == 0:
        return Kind.q8_row
    if quantized == "auto":
        coarse = weight.name == "i4" and not weight.has_min
        return Kind.q8 if coarse else Kind.q16
    return Kind.q8 if quantized == "int8" else Kind.q16
