"""HQQ: values against the library's definition, a model against its dequantized weights."""

from __future__ import annotations

import logging
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from galley.errors import ModelError
from galley.kernels.weights import pack
from galley.loader import RawTensor
from galley.quant import scheme_of
from tests.quant.tensors import TensorDict
from tests.quant.twins import check_model, model_info, raw

CONFIG = {
    "quant_method": "hqq",
    "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}},
    "skip_modules": ["lm_head"],
}
#: Bits → codes of a number, and bits of each (hqq.core.bitpack).
PACKING = {8: (1, 8), 5: (1, 8), 4: (2, 4), 3: (10, 3), 2: (4, 2), 1: (8, 1)}
BF16 = np.dtype(ml_dtypes.bfloat16)


def make_layer(
    name: str,
    n: int,
    k: int,
    bits: int,
    group: int,
    rng: np.random.Generator,
    dtype: Any = np.float16,
) -> tuple[list[RawTensor], np.ndarray]:
    """A layer's tensors and its values, code by code."""
    rows = n * k // group
    each, width = PACKING[bits]
    step = -(-rows // each)
    packed = np.zeros((step, group), np.int64)
    codes = rng.integers(0, 2**bits, (rows, group))
    for row in range(rows):
        part, at = divmod(row, step)
        packed[at] |= codes[row] << width * (each - 1 - part)
    scale = rng.uniform(0.001, 0.03, (rows, 1)).astype(dtype)
    zero = rng.uniform(0, 2**bits - 1, (rows, 1)).astype(dtype)
    values = scale.astype(np.float32) * (codes - zero.astype(np.float32))
    arrays = {
        "W_q": packed.astype(np.int32 if bits == 3 else np.uint8),
        "scale": scale,
        "zero": zero,
        "nbits": np.array(bits, np.int32),
        "group_size": np.array(group, np.int32),
        "shape": np.array([n, k], np.int64),
        "axis": np.array(1, np.int32),
        "packing": np.frombuffer(b"4bit_u8", np.uint8),
        "channel_wise": np.array(1, np.uint8),
        "view_as_float": np.array(0, np.uint8),
    }
    layer = [raw(f"{name}.{kind}", array) for kind, array in arrays.items()]
    return layer, values.astype(np.float32).reshape(n, k)


@pytest.mark.parametrize("dtype", [np.float16, BF16])
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("bits", PACKING)
def test_values_equal_the_definition(bits: int, group: int, dtype: Any) -> None:
    """Nor does packing change them, or take more than the codes, scales and zeros of the file."""
    n, k = 96, 128
    layer, want = make_layer("w", n, k, bits, group, np.random.default_rng(bits), dtype)
    tensors = TensorDict(*layer)
    weight = scheme_of(model_info(CONFIG)).read("w", (n, k), tensors)
    assert tensors.used == {tensor.name for tensor in layer}
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    assert np.array_equal(packed.cut(columns=slice(0, group)).unpack(), want[:, :group])
    stored = sum(tensor.data.nbytes for tensor in layer[:3])
    assert packed.data.nbytes <= stored


def test_numbers_viewed_as_floats_and_zeros_that_are_codes() -> None:
    layer, want = make_layer("w", 64, 128, 4, 64, np.random.default_rng(0))
    data = {tensor.name: tensor.data for tensor in layer}
    data["w.W_q"] = data["w.W_q"].view(np.float16)
    scheme = scheme_of(model_info(CONFIG))
    floats = TensorDict(*(raw(*pair) for pair in data.items()))
    assert np.array_equal(scheme.read("w", (64, 128), floats).to_float32(), want)
    data["w.zero"] = np.round(data["w.zero"])
    whole = TensorDict(*(raw(*pair) for pair in data.items()))
    assert pack(scheme.read("w", (64, 128), whole)).format.offset == "zeros"


def test_settings_of_the_config_hold_where_layers_have_none() -> None:
    layer, want = make_layer("w", 64, 128, 4, 64, np.random.default_rng(0))
    weight = scheme_of(model_info(CONFIG)).read("w", (64, 128), TensorDict(*layer[:3]))
    assert np.array_equal(weight.to_float32(), want)


def test_a_setting_of_another_type_is_refused() -> None:
    layer, _ = make_layer("w", 64, 128, 4, 64, np.random.default_rng(0))
    tensors = TensorDict(*layer[:3])
    with pytest.raises(ModelError, match=r"w\.nbits is \{\}, not a number"):
        scheme_of(model_info({**CONFIG, "quant_config": {"nbits": {}}})).read(
            "w", (64, 128), tensors
        )


@pytest.mark.parametrize("group", [32, 8])
def test_model_equals_dequantized_weights(group: int, caplog: pytest.LogCaptureFixture) -> None:
    """The log says that there is no kernel for groups of 8."""
    caplog.set_level(logging.INFO)
    rng = np.random.default_rng(0)
    check_model(CONFIG, lambda name, values: make_layer(name, *values.shape, 4, group, rng))
    assert ("4 bits in groups of 8: kernels have" in caplog.text) == (group == 8)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("axis", np.array(0, np.int32), r"w\.axis is 0(\.0)?; 1 is supported"),
        ("nbits", np.array(7, np.int32), r"w\.nbits is 7(\.0)?; 8, 6, 5, 4, 3, 2, 1.58, 1 are"),
        ("group_size", np.array(48, np.int32), "not whole groups of 48"),
        ("quant_zero", np.array(1, np.uint8), r"w\.quant_zero is 1"),
        ("W_q", np.zeros((3, 64), np.uint8), r"w\.W_q of uint8 \[3, 64\] does not hold 128 rows"),
    ],
)
def test_other_layers_are_refused_by_name(name: str, value: np.ndarray, message: str) -> None:
    layer, _ = make_layer("w", 64, 128, 4, 64, np.random.default_rng(0))
    data = {tensor.name: tensor.data for tensor in layer} | {f"w.{name}": value}
    with pytest.raises(ModelError, match=message):
        scheme_of(model_info(CONFIG)).read(
            "w", (64, 128), TensorDict(*(raw(*pair) for pair in data.items()))
        )
