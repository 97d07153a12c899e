"""torchao: values against the library's definition, a model against its dequantized weights."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from galley.errors import ModelError
from galley.kernels.weights import pack
from galley.loader import RawTensor
from galley.quant import scheme_of
from tests.quant.tensors import TensorDict
from tests.quant.twins import check_model, model_info, raw

CONFIG = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
BF16 = ml_dtypes.bfloat16


def make_layer(
    name: str, shape: tuple[int, int], kind: str, rng: np.random.Generator
) -> tuple[list[RawTensor], np.ndarray]:
    n, k = shape
    group = 32 if kind in ("int4", "int8 groups") else k
    scale = rng.uniform(0.001, 0.002, (n, k // group)).astype(BF16)
    each = scale.astype(np.float32).repeat(group, axis=1)
    tensors: dict[str, np.ndarray]
    if kind == "int4":
        codes = rng.integers(-8, 8, shape).astype(np.int8)
        zeros = rng.normal(0, 0.01, (n, k // group)).astype(BF16)
        packed = (codes[:, 0::2] & 15 | codes[:, 1::2] << 4).view(np.uint8)
        tensors = {"qdata": packed, "scale": scale.T, "zero_point": zeros.T}
        values = codes.astype(np.float32) * each + zeros.astype(np.float32).repeat(group, axis=1)
    elif kind.startswith("float8"):
        numbers = rng.normal(0, 64, shape).astype(ml_dtypes.float8_e4m3fn)
        if kind == "float8 tensor":
            scale = scale[:1]
            each = scale.astype(np.float32)
        tensors = {"qdata": numbers, "scale": scale}
        values = numbers.astype(np.float32) * each
    else:
        codes = rng.integers(-128, 128, shape).astype(np.int8)
        zeros = rng.integers(-10, 10, scale.shape).astype(np.int8)
        tensors = {"qdata": codes, "scale": scale, "zero_point": zeros}
        levels = codes.astype(np.float32) - zeros.astype(np.float32).repeat(group, axis=1)
        values = levels * each
    layer = [raw(f"{name}._weight_{kind}", np.ascontiguousarray(a)) for kind, a in tensors.items()]
    return layer, values


KINDS = ["int8", "int8 groups", "int4", "float8", "float8 tensor"]


@pytest.mark.parametrize("kind", KINDS)
def test_values_equal_the_definition(kind):
    layer, want = make_layer("w", (40, 192), kind, np.random.default_rng(0))
    tensors = TensorDict(*layer)
    weight = scheme_of(model_info(CONFIG)).read("w", (40, 192), tensors)
    assert tensors.used == {tensor.name for tensor in layer}
    assert np.array_equal(weight.to_float32(), want)
    assert np.array_equal(pack(weight).unpack(), want)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_no_larger_than_the_file(kind):
    layer, _ = make_layer("w", (256, 1024), kind, np.random.default_rng(0))
    packed = pack(scheme_of(model_info(CONFIG)).read("w", (256, 1024), TensorDict(*layer)))
    assert packed.data.nbytes <= 1.02 * sum(tensor.data.nbytes for tensor in layer)


@pytest.mark.parametrize("kind", ["int8 groups", "int4"])
def test_a_model_equals_its_dequantized_weights(kind):
    rng = np.random.default_rng(0)
    check_model(CONFIG, lambda name, values: make_layer(name, values.shape, kind, rng))


def test_other_layers():
    scheme = scheme_of(model_info(CONFIG))
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(BF16)
    weight = scheme.read("w", (8, 16), TensorDict(raw("w.weight", values)))
    assert np.array_equal(weight.to_float32(), values.astype(np.float32))
    tiled = raw("w._weight_qdata", np.zeros((1, 1, 32, 4), np.int32))
    with pytest.raises(ModelError, match=r"w\._weight_qdata of shape .* is tiled; int8 and plain"):
        scheme.read("w", (8, 64), TensorDict(tiled))
    layer, _ = make_layer("w", (8, 64), "int8", np.random.default_rng(0))
    with pytest.raises(ModelError, match=r"no tensor w\._weight_scale"):
        scheme.read("w", (8, 64), TensorDict(layer[0]))
    scales = raw("w._weight_scale", np.ones((8, 5), np.float32))
    with pytest.raises(ModelError, match="not a scale per output or group"):
        scheme.read("w", (8, 64), TensorDict(layer[0], scales))
