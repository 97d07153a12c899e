"""compressed-tensors weights with inputs of 16 bits or more: packed integers, bytes, FP8."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from galley.errors import ModelError
from galley.kernels.weights import pack
from galley.loader import RawTensor
from galley.quant import scheme_of
from tests.models.families import FAMILIES
from tests.quant.tensors import TensorDict
from tests.quant.twins import LLAMA, check_model, model_info, raw

E4M3 = ml_dtypes.float8_e4m3fn
BF16 = ml_dtypes.bfloat16


def group_of(bits: int, strategy: str, kind: str = "int", **changes: Any) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": kind,
        "symmetric": True,
        "strategy": strategy,
        "group_size": None,
        "block_structure": None,
        "actorder": None,
    }
    return {"targets": ["Linear"], "weights": weights | changes, "input_activations": None}


def config_of(layout: str, *groups: dict[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
    }


def int32_of_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes [rows, n] as the format packs them: bit by bit, the lowest first."""
    rows, n = codes.shape
    unsigned = codes.astype(np.int64) + 2 ** (bits - 1)
    stream = (unsigned[..., None] >> np.arange(bits) & 1).reshape(rows, n * bits)
    stream = np.pad(stream, ((0, 0), (0, -n * bits % 32))).reshape(rows, -1, 32)
    return (stream << np.arange(32)).sum(-1).astype(np.uint32).view(np.int32)


def block_of(group: dict[str, Any], n: int, k: int) -> tuple[int, int]:
    weights = group["weights"]
    return {
        "tensor": (n, k),
        "channel": (1, k),
        "group": (1, weights["group_size"] or k),
        "block": tuple(weights["block_structure"] or (n, k)),
    }[weights["strategy"]]


def make_layer(
    name: str, shape: tuple[int, int], layout: str, group: dict[str, Any], rng: np.random.Generator
) -> tuple[list[RawTensor], np.ndarray]:
    """The tensors of a layer of random codes, zeros and scales; its values."""
    (n, k), weights = shape, group["weights"]
    bits, (rows, columns) = weights["num_bits"], block_of(group, n, k)
    scales = rng.normal(0, 0.3 / 2**bits, (-(-n // rows), -(-k // columns))).astype(BF16)
    low = -(2 ** (bits - 1))
    zeros = np.zeros(scales.shape, np.int8)
    if not weights["symmetric"]:
        zeros = rng.integers(low, -low, scales.shape).astype(np.int8)
    if weights["type"] == "float":
        codes = rng.normal(0, 64, shape).astype(E4M3)
    else:
        codes = rng.integers(low, -low, shape).astype(np.int8)
    at = np.arange(n)[:, None] // rows, np.arange(k) // columns
    levels = codes.astype(np.float32) - zeros[at].astype(np.float32)
    values = scales[at].astype(np.float32) * levels
    stored = scales.reshape(1) if weights["strategy"] == "tensor" else scales
    tensors = {"weight_scale": stored}
    if layout == "pack-quantized":
        tensors["weight_packed"] = int32_of_codes(codes, bits)
        tensors["weight_shape"] = np.array(shape, np.int64)
        zeros = int32_of_codes(zeros.T, bits).T
    else:
        tensors["weight"] = codes
    if not weights["symmetric"]:
        tensors["weight_zero_point"] = zeros
    return [raw(f"{name}.{kind}", array) for kind, array in tensors.items()], values


CASES = {
    "W4A16 channel": ("pack-quantized", group_of(4, "channel")),
    "W4A16 groups": ("pack-quantized", group_of(4, "group", group_size=32)),
    "W4A16 asymmetric": ("pack-quantized", group_of(4, "group", group_size=64, symmetric=False)),
    "W4A16 ordered ahead": (
        "pack-quantized",
        group_of(4, "group", group_size=32, actorder="static"),
    ),
    "W8A16 channel": ("pack-quantized", group_of(8, "channel")),
    "W8A16 groups": ("pack-quantized", group_of(8, "group", group_size=32)),
    "W8A16 asymmetric": ("pack-quantized", group_of(8, "channel", symmetric=False)),
    "W8A16 bytes": ("naive-quantized", group_of(8, "group", group_size=32)),
    "W8A16 bytes asymmetric": ("int-quantized", group_of(8, "channel", symmetric=False)),
    "FP8 tensor": ("float-quantized", group_of(8, "tensor", "float")),
    "FP8 channel": ("float-quantized", group_of(8, "channel", "float")),
    "FP8 blocks": ("float-quantized", group_of(8, "block", "float", block_structure=[32, 64])),
    "FP8 naive": ("naive-quantized", group_of(8, "channel", "float")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(32, 256), (36, 192)])
def test_values_equal_the_definition(case, shape):
    layout, group = CASES[case]
    layer, want = make_layer("w", shape, layout, group, np.random.default_rng(len(case)))
    tensors = TensorDict(*layer)
    weight = scheme_of(model_info(config_of(layout, group))).read("w", shape, tensors)
    assert tensors.used == {tensor.name for tensor in layer}
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    rows_of_bf16 = packed.format.table == "floats" or packed.format.name == "i4"
    assert packed.format.activations == ("bf16" if rows_of_bf16 else "as_is")


@pytest.mark.parametrize("case", CASES)
def test_packed_weights_are_no_larger_than_the_file(case):
    layout, group = CASES[case]
    if layout == "float-quantized" and group["weights"]["strategy"] == "block":
        group = group_of(8, "block", "float", block_structure=[128, 128])
    layer, _ = make_layer("w", (256, 1024), layout, group, np.random.default_rng(0))
    scheme = scheme_of(model_info(config_of(layout, group)))
    packed = pack(scheme.read("w", (256, 1024), TensorDict(*layer)))
    assert packed.data.nbytes <= 1.02 * sum(tensor.data.nbytes for tensor in layer)


@pytest.mark.parametrize(
    ("case", "model"),
    [
        ("W4A16 asymmetric", LLAMA),
        ("W8A16 channel", LLAMA),
        ("FP8 tensor", LLAMA),
        # Checklist 77: gemma-4-31B-it-FP8-block in small.
        ("FP8 blocks", FAMILIES["gemma4"]),
    ],
)
def test_a_model_equals_its_dequantized_weights(case, model):
    layout, group = CASES[case]
    rng = np.random.default_rng(0)
    check_model(
        config_of(layout, group),
        lambda name, values: make_layer(name, values.shape, layout, group, rng),
        model,
    )


def test_layers_of_several_groups_and_none():
    four, eight = group_of(4, "group", group_size=32), group_of(8, "channel", "float")
    four["format"], eight["format"] = "pack-quantized", "float-quantized"
    four["targets"], eight["targets"] = ["re:.*mlp.*"], ["re:.*self_attn.*"]
    eight["input_activations"] = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    scheme = scheme_of(model_info(config_of("mixed-precision", four, eight)))
    rng = np.random.default_rng(0)
    for group in (four, eight):
        layer, want = make_layer("w", (32, 64), group["format"], group, rng)
        layer.append(raw("w.input_scale", np.ones(1, BF16)))
        tensors = TensorDict(*layer)
        assert np.array_equal(scheme.read("w", (32, 64), tensors).to_float32(), want)
    assert "w.input_scale" in tensors.used
    dense = rng.normal(size=(8, 16)).astype(BF16)
    weight = scheme.read("lm_head", (8, 16), TensorDict(raw("lm_head.weight", dense)))
    assert np.array_equal(weight.to_float32(), dense.astype(np.float32))


@pytest.mark.parametrize(
    ("layout", "group", "message"),
    [
        ("pack-quantized", group_of(3, "channel"), "weights.num_bits is 3; 4, 8 is supported"),
        ("pack-quantized", group_of(4, "group"), "group_size is None"),
        ("pack-quantized", group_of(4, "tensor_group"), "strategy is 'tensor_group'"),
        ("float-quantized", group_of(4, "channel", "float"), "num_bits is 4"),
        ("float-quantized", group_of(8, "channel"), "weights.type is 'int'; 'float'"),
        ("float-quantized", group_of(8, "block", "float"), "block_structure is None"),
        ("nvfp4-pack-quantized", group_of(4, "tensor_group", "float"), "group_size is None; 16"),
        ("mxfp4-pack-quantized", group_of(4, "group"), "weights.type is 'int'; 'float'"),
    ],
)
def test_other_schemes_are_refused_by_name(layout, group, message):
    with pytest.raises(ModelError, match=message):
        scheme_of(model_info(config_of(layout, group)))


def test_activation_order_across_groups():
    group = group_of(4, "group", group_size=32, actorder="group")
    rng = np.random.default_rng(0)
    layer, want = make_layer("w", (32, 128), "pack-quantized", group, rng)
    scales = next(t.data for t in layer if t.name == "w.weight_scale").astype(np.float32)
    levels = want / scales.repeat(32, axis=1)
    g_idx = rng.permutation(np.arange(128, dtype=np.int32) // 32)
    tensors = TensorDict(*layer, raw("w.weight_g_idx", g_idx))
    scheme = scheme_of(model_info(config_of("pack-quantized", group)))
    weight = scheme.read("w", (32, 128), tensors)
    assert np.array_equal(weight.to_float32(), np.round(levels) * scales[:, g_idx])
    assert np.array_equal(pack(weight).unpack(), weight.to_float32())


def test_targets_choose_among_groups_that_are_stored_alike():
    """int8 weights, whose inputs are rounded in one group and not in the other."""
    rounded, plain = group_of(8, "channel"), group_of(8, "channel")
    rounded["input_activations"] = {"num_bits": 8, "type": "int", "strategy": "token"}
    rounded["targets"], plain["targets"] = ["Linear"], [r"re:.*\.down_proj$", "o_proj"]
    scheme = scheme_of(model_info(config_of("int-quantized", rounded, plain)))
    rng = np.random.default_rng(0)
    for name, want in {"a.q_proj": "token", "a.down_proj": "as_is", "a.o_proj": "as_is"}.items():
        layer, _ = make_layer(name, (32, 64), "int-quantized", plain, rng)
        assert scheme.read(name, (32, 64), TensorDict(*layer)).activations == want
    plain["targets"] = ["re:("]
    with pytest.raises(ModelError, match=r"group_1\.targets: 're:\('"):
        scheme_of(model_info(config_of("int-quantized", rounded, plain)))


def test_damaged_layers_are_refused_by_name():
    layout, group = CASES["W4A16 groups"]
    scheme = scheme_of(model_info(config_of(layout, group)))
    layer, _ = make_layer("w", (32, 64), layout, group, np.random.default_rng(0))
    with pytest.raises(ModelError, match=r"no tensor w\.weight_scale"):
        scheme.read("w", (32, 64), TensorDict(*layer[1:]))
    with pytest.raises(ModelError, match=r"w of shape .* none of config_groups prescribes"):
        scheme.read("w", (32, 128), TensorDict(*layer))
    zeros = raw("w.weight_zero_point", np.zeros((4, 2), np.int32))
    with pytest.raises(ModelError, match="with zero points, which none"):
        scheme.read("w", (32, 64), TensorDict(*layer, zeros))
    floats = raw("w.weight_packed", np.zeros((32, 8), np.float32))
    rest = [tensor for tensor in layer if tensor.name != floats.name]
    with pytest.raises(ModelError, match="weight_packed is float32; int32 is needed"):
        scheme.read("w", (32, 64), TensorDict(floats, *rest))
