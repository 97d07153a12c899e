"""Checkpoints of four-bit floats and of ModelOpt and Quark: values against the definitions, a model
against its dequantized weights."""

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

E4M3 = ml_dtypes.float8_e4m3fn
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
Layer = tuple[list[RawTensor], np.ndarray]


def fp4_values(packed: np.ndarray) -> np.ndarray:
    """Numbers [N, K] of bytes [N, K / 2], one nibble at a time."""
    n, half = packed.shape
    values = np.empty((n, 2 * half), np.float32)
    for i, j in np.ndindex(n, half):
        high, low = divmod(int(packed[i, j]), 16)
        values[i, 2 * j : 2 * j + 2] = E2M1[low], E2M1[high]
    return values


def spread(scales: np.ndarray, k: int) -> np.ndarray:
    return np.repeat(scales, k // scales.shape[1], axis=1)


def mxfp4(name: str, shape: tuple[int, int], rng: np.random.Generator, weight: str) -> Layer:
    n, k = shape
    packed = rng.integers(0, 256, (n, k // 2), np.uint8)
    exponents = rng.integers(118, 124, (n, k // 32), np.uint8)
    exponents[0, 0] = 0  # as of a block of zeros
    tensors = {weight: packed, "weight_scale": exponents}
    powers = np.float32(2) ** (exponents.astype(np.float32) - 127)
    values = fp4_values(packed) * spread(powers, k)
    return [raw(f"{name}.{kind}", data) for kind, data in tensors.items()], values


def nvfp4(name: str, shape: tuple[int, int], rng: np.random.Generator, divides: bool) -> Layer:
    """Of compressed-tensors (a divisor) or ModelOpt (a factor), both a power of two here."""
    n, k = shape
    packed = rng.integers(0, 256, (n, k // 2), np.uint8)
    scales = np.abs(rng.normal(0, 64, (n, k // 16))).astype(E4M3)
    factor = np.float32(2**-14)
    values = fp4_values(packed) * spread(scales.astype(np.float32) * factor, k)
    if divides:
        tensors = {
            "weight_packed": packed,
            "weight_global_scale": np.array([1 / factor], np.float32),
            "input_global_scale": np.ones(1, np.float32),
        }
    else:
        tensors = {
            "weight": packed,
            "weight_scale_2": np.array(factor),
            "input_scale": np.ones((), np.float32),
        }
    tensors["weight_scale"] = scales
    return [raw(f"{name}.{kind}", data) for kind, data in tensors.items()], values


def fp8(name: str, shape: tuple[int, int], rng: np.random.Generator, scale: str) -> Layer:
    n, k = shape
    numbers = rng.normal(0, 64, shape).astype(E4M3)
    stored: np.ndarray
    if scale == "exponents":
        stored = rng.integers(112, 118, (n, k // 32), np.uint8)
        each = spread(np.float32(2) ** (stored.astype(np.float32) - 127), k)
    elif scale == "blocks":
        stored = rng.uniform(0.0002, 0.002, (-(-n // 128), -(-k // 128))).astype(np.float32)
        each = stored.repeat(128, axis=0)[:n].repeat(128, axis=1)[:, :k]
    else:
        stored = rng.uniform(0.0002, 0.002, (n,) if scale == "outputs" else ()).astype(np.float32)
        each = np.broadcast_to(stored.reshape(-1, 1), (n, k))
    tensors = {"weight": numbers, "weight_scale": stored}
    values = numbers.astype(np.float32) * each
    return [raw(f"{name}.{kind}", data) for kind, data in tensors.items()], values


def int8(name: str, shape: tuple[int, int], rng: np.random.Generator) -> Layer:
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    scale = rng.uniform(0.0002, 0.002, shape[0]).astype(np.float32)
    values = codes.astype(np.float32) * scale[:, None]
    return [raw(f"{name}.weight", codes), raw(f"{name}.weight_scale", scale)], values


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 4, "type": "float", "symmetric": True, **weights},
        "input_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def quark(weight: str, **inputs: Any) -> dict[str, Any]:
    tables = {"weight": {"dtype": weight}, "input_tensors": inputs or None}
    return {"quant_method": "quark", "global_quant_config": tables, "exclude": ["lm_head"]}


NV = compressed("nvfp4-pack-quantized", strategy="tensor_group", group_size=16)
MX = compressed("mxfp4-pack-quantized", strategy="group", group_size=32)
MX8 = compressed("mxfp8-quantized", strategy="group", group_size=32, num_bits=8)
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "NVFP4": (NV, lambda *layer: nvfp4(*layer, divides=True)),
    "MXFP4": (MX, lambda *layer: mxfp4(*layer, "weight_packed")),
    "MXFP8": (MX8, lambda *layer: fp8(*layer, "exponents")),
    "ModelOpt NVFP4": (MODELOPT, lambda *layer: nvfp4(*layer, divides=False)),
    "ModelOpt FP8": ({**MODELOPT, "quant_algo": "FP8"}, lambda *layer: fp8(*layer, "tensor")),
    "ModelOpt outputs": (MODELOPT, lambda *layer: fp8(*layer, "outputs")),
    "ModelOpt blocks": (MODELOPT, lambda *layer: fp8(*layer, "blocks")),
    "ModelOpt MXFP8": (MODELOPT, lambda *layer: fp8(*layer, "exponents")),
    "Quark MXFP4": (quark("fp4"), lambda *layer: mxfp4(*layer, "weight")),
    "Quark FP8": (quark("fp8_e4m3"), lambda *layer: fp8(*layer, "tensor")),
    "Quark FP8 outputs": (quark("fp8_e4m3"), lambda *layer: fp8(*layer, "outputs")),
    "Quark int8": (quark("int8"), int8),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(32, 256), (36, 160)])
def test_values_equal_the_definition(case, shape):
    config, make = CASES[case]
    if case.endswith("blocks"):
        shape = (shape[0] + 128, shape[1])
    layer, want = make("w", shape, np.random.default_rng(len(case)))
    tensors = TensorDict(*layer)
    weight = scheme_of(model_info(config)).read("w", shape, tensors)
    assert tensors.used == {tensor.name for tensor in layer}
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    floats = packed.format.table == "floats"
    assert packed.format.activations == ("bf16" if floats else "as_is")


@pytest.mark.parametrize("case", CASES)
def test_packed_weights_are_no_larger_than_the_file(case):
    config, make = CASES[case]
    layer, _ = make("w", (256, 2048), np.random.default_rng(0))
    packed = pack(scheme_of(model_info(config)).read("w", (256, 2048), TensorDict(*layer)))
    assert packed.data.nbytes <= 1.02 * sum(tensor.data.nbytes for tensor in layer)


@pytest.mark.parametrize("case", ["NVFP4", "MXFP4", "ModelOpt MXFP8", "Quark FP8 outputs"])
def test_a_model_equals_its_dequantized_weights(case):
    config, make = CASES[case]
    rng = np.random.default_rng(0)
    check_model(config, lambda name, values: make(name, values.shape, rng))


def test_quark_rounds_inputs_to_int8_where_its_configuration_does():
    layer, _ = int8("w", (32, 64), np.random.default_rng(0))
    config = quark("int8", dtype="int8", is_dynamic=True)
    weight = scheme_of(model_info(config)).read("w", (32, 64), TensorDict(*layer))
    assert weight.activations == "token"
    pack(weight)


@pytest.mark.parametrize("method", ["modelopt", "quark"])
def test_excluded_layers_are_dense(method):
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(ml_dtypes.bfloat16)
    scheme = scheme_of(model_info({"quant_method": method}))
    weight = scheme.read("w", (8, 16), TensorDict(raw("w.weight", values)))
    assert np.array_equal(weight.to_float32(), values.astype(np.float32))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**MODELOPT, "quant_algo": "W4A8_AWQ"}, "quant_algo is 'W4A8_AWQ'"),
        (quark("int4"), "global_quant_config.weight.dtype is 'int4'"),
        ({"quant_method": "quark", "global_quant_config": 3}, "global_quant_config is not an"),
    ],
)
def test_other_configurations_are_refused_by_name(config, message):
    with pytest.raises(ModelError, match=message):
        scheme_of(model_info(config))


@pytest.mark.parametrize(
    ("case", "kind", "data", "message"),
    [
        ("NVFP4", "weight_scale", np.ones((32, 4), np.float32), "weight_scale is float32; float8"),
        ("NVFP4", "weight_scale", np.ones((32, 5), E4M3), r"no tensor w\.weight_scale of shape"),
        ("NVFP4", "weight_global_scale", np.ones(2, np.float32), "weight_global_scale of shape"),
        ("MXFP4", "weight_packed", np.zeros((32, 32), np.int8), "weight_packed is int8; uint8"),
        ("MXFP4", "weight_scale", np.zeros((32, 2), np.int8), "weight_scale is int8; uint8"),
        ("ModelOpt FP8", "weight", np.zeros((32, 64), np.int8), "weight is int8; float8_e4m3fn"),
        ("ModelOpt FP8", "weight_scale", np.ones(3, np.float32), "not a scale per tensor, output"),
        ("Quark int8", "weight", np.zeros((32, 64), np.int16), "weight is int16; float8_e4m3fn or"),
        ("Quark int8", "weight_zero_point", np.ones(32, np.int8), "weight_zero_point is not 0"),
    ],
)
def test_damaged_layers_are_refused_by_name(case, kind, data, message):
    config, make = CASES[case]
    layer, _ = make("w", (32, 64), np.random.default_rng(0))
    rest = [tensor for tensor in layer if tensor.name != f"w.{kind}"]
    with pytest.raises(ModelError, match=message):
        scheme_of(model_info(config)).read("w", (32, 64), TensorDict(*rest, raw(f"w.{kind}", data)))
