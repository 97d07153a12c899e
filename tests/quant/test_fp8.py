"""FP8 checkpoints: values against the definition, a model against its dequantized weights."""

from __future__ import annotations

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

CONFIG: dict[str, Any] = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [32, 64],
}
PER_TENSOR = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}


def make_layer(
    name: str, shape: tuple[int, int], block: list[int] | None, rng: np.random.Generator
) -> tuple[list[RawTensor], np.ndarray]:
    """A layer's tensors, and its values."""
    n, k = shape
    numbers = rng.normal(0, 64, shape).astype(ml_dtypes.float8_e4m3fn)
    if block is None:
        scale = np.float32(rng.normal(0, 0.001))
        tensors = {
            "weight": numbers,
            "weight_scale": np.array(scale),
            "input_scale": np.array(np.float32(0.1)),
        }
        values = numbers.astype(np.float32) * scale
    else:
        rows, columns = block
        scales = rng.normal(0, 0.001, (-(-n // rows), -(-k // columns))).astype(np.float32)
        tensors = {"weight": numbers, "weight_scale_inv": scales}
        each = scales[np.arange(n)[:, None] // rows, np.arange(k) // columns]
        values = numbers.astype(np.float32) * each
    return [raw(f"{name}.{kind}", array) for kind, array in tensors.items()], values


@pytest.mark.parametrize("shape", [(64, 256), (96, 64), (40, 160)])
@pytest.mark.parametrize("config", [CONFIG, PER_TENSOR], ids=["blocks", "tensor"])
def test_values_equal_the_definition(config, shape):
    rng = np.random.default_rng(shape[0])
    layer, want = make_layer("w", shape, config.get("weight_block_size"), rng)
    tensors = TensorDict(*layer)
    weight = scheme_of(model_info(config)).read("w", shape, tensors)
    assert tensors.used == {tensor.name for tensor in layer}
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    assert packed.format.activations == "bf16"


def test_every_number_is_read():
    numbers = np.arange(256, dtype=np.uint8).reshape(1, 256).view(ml_dtypes.float8_e4m3fn)
    tensors = TensorDict(raw("w.weight", numbers), raw("w.weight_scale", np.ones((), np.float32)))
    values = scheme_of(model_info(PER_TENSOR)).read("w", (1, 256), tensors).to_float32()
    assert np.array_equal(values, numbers.astype(np.float32), equal_nan=True)
    assert values[0, 0x7E] == 448


def test_a_block_beyond_the_weight_takes_no_memory():
    layer, want = make_layer("w", (8, 64), [8, 64], np.random.default_rng(0))
    config = {**CONFIG, "weight_block_size": [2**53, 2**53]}
    weight = scheme_of(model_info(config)).read("w", (8, 64), TensorDict(*layer))
    assert np.array_equal(weight.to_float32(), want)


@pytest.mark.parametrize("config", [CONFIG, PER_TENSOR], ids=["blocks", "tensor"])
def test_an_fp8_model_equals_its_dequantized_weights(config):
    rng = np.random.default_rng(0)
    block = config.get("weight_block_size")
    check_model(config, lambda name, values: make_layer(name, values.shape, block, rng))


def test_layers_that_are_not_converted_are_dense():
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(ml_dtypes.bfloat16)
    weight = scheme_of(model_info(CONFIG)).read("w", (8, 16), TensorDict(raw("w.weight", values)))
    assert np.array_equal(weight.to_float32(), values.astype(np.float32))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weight_block_size", [128], r"weight_block_size is \[128\]"),
        ("weight_block_size", [0, 128], r"weight_block_size is \[0, 128\]"),
        ("activation_scheme", "none", "activation_scheme is 'none'"),
    ],
)
def test_other_configurations_are_refused_by_name(key, value, message):
    with pytest.raises(ModelError, match=message):
        scheme_of(model_info({**CONFIG, key: value}))


def test_damaged_layers_are_refused_by_name():
    scheme = scheme_of(model_info(CONFIG))
    layer, _ = make_layer("w", (64, 128), [32, 64], np.random.default_rng(0))
    with pytest.raises(ModelError, match=r"no tensor w\.weight_scale_inv"):
        scheme.read("w", (64, 128), TensorDict(layer[0]))
    scales = raw("w.weight_scale_inv", np.ones((2, 3), np.float32))
    with pytest.raises(ModelError, match=r"weight_scale_inv of shape \(2, 2\)"):
        scheme.read("w", (64, 128), TensorDict(layer[0], scales))
    other = raw("w.weight", np.zeros((64, 128), ml_dtypes.float8_e5m2))
    with pytest.raises(ModelError, match=r"w\.weight: weight format float8_e5m2"):
        scheme.read("w", (64, 128), TensorDict(other))
