"""Which activation rows meet which weight."""

import pytest

from galley.kernels.activations import activation_kind
from galley.kernels.program import Kind
from galley.kernels.weights import WeightFormat


@pytest.mark.parametrize(
    ("weight", "auto", "int8", "int16"),
    [
        (WeightFormat("f32"), Kind.f32, Kind.f32, Kind.f32),
        (WeightFormat("bf16"), Kind.bf16, Kind.bf16, Kind.bf16),
        (WeightFormat("i8", 0), Kind.q8_row, Kind.q8_row, Kind.q8_row),
        (WeightFormat("i8", 32, "f16"), Kind.q16, Kind.q8, Kind.q16),
        (WeightFormat("i8", 16, "f32", True), Kind.q16, Kind.q8, Kind.q16),
        (WeightFormat("i4", 32, "f16", True), Kind.q16, Kind.q8, Kind.q16),
        (WeightFormat("i4", 32, "f16"), Kind.q8, Kind.q8, Kind.q16),
    ],
)
def test_kind_by_format_and_flag(weight, auto, int8, int16):
    assert activation_kind(weight, "auto") == auto
    assert activation_kind(weight, "int8") == int8
    assert activation_kind(weight, "int16") == int16
