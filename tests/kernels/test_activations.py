"""Activation precision by weight format and flag."""

import pytest

from galley.kernels import _native, activations
from galley.kernels.activations import activation_kind, common_kind
from galley.kernels.program import Kind
from galley.kernels.weight_format import WeightFormat
from galley.layers.shapes import ShapeWeight


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


@pytest.mark.parametrize(
    ("weight", "elsewhere"),
    [
        (WeightFormat("i4", 128, 8, activations="bf16"), Kind.q16),
        (WeightFormat("i8", 128, table="floats", activations="bf16"), Kind.f32),
    ],
)
def test_bfloat16_where_tiles_multiply_it(weight, elsewhere, monkeypatch):
    monkeypatch.setattr(_native, "isa", lambda: "amx")
    assert activation_kind(weight, "auto") == activation_kind(weight, "bf16") == Kind.bf16
    assert (activation_kind(weight, "int16") == Kind.bf16) == (weight.table == "floats")
    monkeypatch.setattr(_native, "isa", lambda: "avx512")
    assert activation_kind(weight, "auto") == elsewhere


def test_bfloat16_where_the_format_leaves_the_choice(monkeypatch):
    q4_k, q6_k = WeightFormat("i4", 32, 0, "u6", "min"), WeightFormat("i6", 16, 32, "i8")
    trits = WeightFormat("t2", 256, 1)  # have no kernel for it
    monkeypatch.setattr(_native, "isa", lambda: "amx")
    assert common_kind([q4_k, q6_k], "bf16") == Kind.bf16
    assert common_kind([q4_k, trits], "bf16") == Kind.q16
    assert common_kind([q4_k, q6_k], "auto") == Kind.q16
    weight = ShapeWeight((4096, 4096), q4_k)
    monkeypatch.setattr(activations, "largest_cache", lambda: weight.num_bytes)
    assert not activations.suits_bf16([weight])
    assert not activations.suits_bf16([ShapeWeight((4096, 4096), trits)] * 4)
    assert activations.suits_bf16([weight, weight])
    monkeypatch.setattr(_native, "isa", lambda: "avx512")
    assert not activations.suits_bf16([weight, weight])
