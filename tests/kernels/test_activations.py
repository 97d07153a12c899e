"""Activation precision by weight format and flag."""

import pytest

from galley.kernels.activations import activation_kind
from galley.kernels.program import Kind
from galley.kernels.weight_format import WeightFormat


@pytest.mark.parametrize(
    ("weight", "auto", "int8", "int16"),
    [
        (WeightFormat("f32"), Kind.f32, Kind.f32, Kind.f32),
        (WeightFormat("bf16"), Kind.bf16, Kind.bf16, Kind.bf16),
        (WeightFormat("i8", activations="token"), Kind.q8_row, Kind.q8_row, Kind.q8_row),
        (WeightFormat("i8", 32), Kind.q16, Kind.q8, Kind.q16),
        (WeightFormat("i6", 16, offset="min"), Kind.q16, Kind.q8, Kind.q16),
        (WeightFormat("i4", 32, offset="min"), Kind.q16, Kind.q8, Kind.q16),
        (WeightFormat("i4", 32), Kind.q8, Kind.q8, Kind.q16),
        # Weight-only formats: what the group is makes no difference.
        (WeightFormat("i8", 0, activations="as_is"), Kind.q16, Kind.q8, Kind.q16),
        (WeightFormat("i4", 0, activations="as_is"), Kind.q16, Kind.q8, Kind.q16),
        (WeightFormat("i4", 32, activations="as_is"), Kind.q16, Kind.q8, Kind.q16),
        (WeightFormat("i4", 64, table="floats"), Kind.f32, Kind.f32, Kind.f32),
    ],
)
def test_kind_by_format_and_flag(weight, auto, int8, int16):
    assert activation_kind(weight, "auto") == auto
    assert activation_kind(weight, "int8") == int8
    assert activation_kind(weight, "int16") == int16
