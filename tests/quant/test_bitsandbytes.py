"""bitsandbytes: values against the library's definition, a model against dequantized weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from galley.errors import ModelError
from galley.kernels.weights import pack
from galley.loader import RawTensor
from galley.quant import concat_rows, scheme_of
from tests.quant.tensors import TensorDict
from tests.quant.twins import check_model, model_info, raw

FOUR = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8",
}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
# fmt: off
LEVELS = {
    "nf4": [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    "fp4": [
        0.0, 0.005208333333333333, 0.6666666666666666, 1.0, 0.3333333333333333, 0.5,
        0.16666666666666666, 0.25, -0.0, -0.005208333333333333, -0.6666666666666666, -1.0,
        -0.3333333333333333, -0.5, -0.16666666666666666, -0.25,
    ],
}
# fmt: on


def make_4bit(
    name: str,
    shape: tuple[int, int],
    rng: np.random.Generator,
    kind: str = "nf4",
    block: int = 64,
    double: bool = False,
) -> tuple[list[RawTensor], np.ndarray]:
    """A layer's tensors of random codes and scales; its values."""
    n, k = shape
    blocks, levels = n * k // block, np.array(LEVELS[kind], np.float32)
    packed = rng.integers(0, 256, (n * k // 2, 1), dtype=np.uint8)
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": block,
        "dtype": "bfloat16",
        "shape": list(shape),
    }
    absmax = rng.uniform(0.01, 0.1, blocks).astype(np.float32)
    tensors = {"": packed, ".quant_map": levels, ".absmax": absmax}
    if double:
        nested = np.linspace(-1, 1, 256, dtype=np.float32)
        scales = rng.uniform(0.01, 0.05, -(-blocks // 256)).astype(np.float32)
        codes = rng.integers(0, 256, blocks, dtype=np.uint8)
        offset = rng.uniform(0.05, 0.07)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        tensors |= {".absmax": codes, ".nested_absmax": scales, ".nested_quant_map": nested}
        absmax = nested[codes] * scales.repeat(256)[:blocks] + np.float32(offset)
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors[f".quant_state.bitsandbytes__{kind}"] = text
    pairs = np.concatenate([packed >> 4, packed & 15], axis=1)
    values = levels[pairs.reshape(blocks, block)] * absmax[:, None]
    layer = [raw(f"{name}.weight{kind}", array) for kind, array in tensors.items()]
    return layer, values.reshape(shape)


def make_8bit(
    name: str, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[list[RawTensor], np.ndarray]:
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    largest = rng.uniform(0.1, 0.4, shape[0]).astype(np.float32)
    tensors = {"weight": codes, "SCB": largest, "weight_format": np.zeros((), np.uint8)}
    values = (largest / np.float32(127))[:, None] * codes.astype(np.float32)
    return [raw(f"{name}.{kind}", array) for kind, array in tensors.items()], values


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
def test_values_of_four_bits_equal_the_definition(kind, block, double):
    shape = (72, 640)  # nested blocks end within a row
    layer, want = make_4bit("w", shape, np.random.default_rng(block), kind, block, double)
    tensors = TensorDict(*layer)
    weight = scheme_of(model_info(FOUR)).read("w", shape, tensors)
    assert tensors.used == {tensor.name for tensor in layer}
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    assert packed.format.activations == "bf16"
    assert packed.format.scale == ("nested" if double else "f32")


@pytest.mark.parametrize(("rows", "scale"), [(32, "nested"), (24, "f32")])
def test_layers_with_double_quantization_are_joined(rows, scale):
    """Sixteen outputs have one offset in the kernels' form; others have scales of float32."""
    rng = np.random.default_rng(0)
    layers = [make_4bit("w", (rows, 640), rng, double=True) for _ in range(2)]
    scheme = scheme_of(model_info(FOUR))
    joined = concat_rows([scheme.read("w", (rows, 640), TensorDict(*of)) for of, _ in layers])
    packed = pack(joined)
    assert packed.format.scale == scale
    assert np.array_equal(packed.unpack(), np.concatenate([values for _, values in layers]))


def test_values_of_eight_bits_equal_the_definition():
    layer, want = make_8bit("w", (40, 96), np.random.default_rng(0))
    tensors = TensorDict(*layer)
    weight = scheme_of(model_info(EIGHT)).read("w", (40, 96), tensors)
    assert tensors.used == {tensor.name for tensor in layer}
    assert np.array_equal(weight.to_float32(), want)
    assert np.array_equal(pack(weight).unpack(), want)


@pytest.mark.parametrize("kind", ["nf4", "nf4 double", "fp4", "int8"])
def test_packed_weights_are_no_larger_than_the_file(kind):
    shape, rng = (128, 1024), np.random.default_rng(0)
    name, _, double = kind.partition(" ")
    if kind == "int8":
        layer, _ = make_8bit("w", shape, rng)
    else:
        layer, _ = make_4bit("w", shape, rng, name, double=bool(double))
    packed = pack(scheme_of(model_info(FOUR)).read("w", shape, TensorDict(*layer)))
    assert packed.data.nbytes <= 1.02 * sum(tensor.data.nbytes for tensor in layer)


@pytest.mark.parametrize("kind", ["nf4 double", "fp4", "int8"])
def test_a_model_equals_its_dequantized_weights(kind):
    rng = np.random.default_rng(0)

    def make_layer(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
        if kind == "int8":
            return make_8bit(name, values.shape, rng)
        return make_4bit(name, values.shape, rng, kind[:3], block=32, double="double" in kind)

    check_model(EIGHT if kind == "int8" else FOUR, make_layer)


def test_layers_that_were_skipped_are_dense():
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float16)
    weight = scheme_of(model_info(FOUR)).read("w", (8, 16), TensorDict(raw("w.weight", values)))
    assert np.array_equal(weight.to_float32(), values.astype(np.float32))


def changed(layer: list[RawTensor], name: str, data: np.ndarray | None) -> TensorDict:
    """The tensors, one of them other data or missing."""
    rest = [tensor for tensor in layer if tensor.name != name]
    return TensorDict(*rest, *([] if data is None else [raw(name, data)]))


def text_of(**state: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(state).encode(), np.uint8)


STATE = "w.weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (STATE, None, r"no tensor w\.weight\.quant_state\.bitsandbytes__nf4 or "),
        (STATE, np.zeros(4, np.uint8), "quant_state.bitsandbytes__nf4: JSON is malformed"),
        (STATE, text_of(blocksize="x"), r"Expected `int`, got `str` - at `\$\.blocksize`"),
        (STATE, text_of(blocksize=0), "blocksize is not positive"),
        (STATE, text_of(blocksize=48), "64 inputs, which are not whole blocks of 48"),
        (STATE, text_of(blocksize=64, shape=[64, 32]), r"of shape \[64, 32\]"),
        ("w.weight.absmax", np.ones(3, np.float32), r"absmax of shape \(32,\)"),
        ("w.weight", np.zeros((1024, 1), np.float32), r"w\.weight is float32; uint8 is needed"),
    ],
)
def test_damaged_layers_are_refused_by_name(name, data, message):
    layer, _ = make_4bit("w", (32, 64), np.random.default_rng(0))
    with pytest.raises(ModelError, match=message):
        scheme_of(model_info(FOUR)).read("w", (32, 64), changed(layer, name, data))


def test_other_variants_are_refused_by_name():
    with pytest.raises(ModelError, match="bnb_4bit_quant_storage is 'bfloat16'"):
        scheme_of(model_info({**FOUR, "bnb_4bit_quant_storage": "bfloat16"}))
    layer, _ = make_8bit("w", (32, 64), np.random.default_rng(0))
    tiled = changed(layer, "w.weight_format", np.ones((), np.uint8))
    with pytest.raises(ModelError, match="weight_format is not 0"):
        scheme_of(model_info(EIGHT)).read("w", (32, 64), tiled)
