"""Online quantization: errors, what is quantized, and answers of a model loaded so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from galley import LLM, SamplingParams
from galley.config import LoadConfig, ModelConfig
from galley.config.registries import ONLINE_METHODS
from galley.errors import ConfigError
from galley.kernels.cpu import CpuBackend
from galley.kernels.weights import pack
from galley.loader import open_checkpoint, resolve_source
from galley.models.footprint import weight_bytes
from galley.quant import online
from galley.quant.online import METHODS, NF4
from tests.models.checkpoints import CASES, StateDict, make
from tests.models.driver import LIMITS, load, solo_logits

RNG = np.random.default_rng(0)
#: Few outliers, as in trained weights.
WEIGHT = (RNG.standard_t(4, (96, 256)) * 0.02).astype(ml_dtypes.bfloat16)


def error(name: str, weight: np.ndarray = WEIGHT) -> float:
    """Of the packed weight, relative to the values."""
    dense = online.QuantizedWeight(dense=weight)
    quantized = METHODS[name]("model.layers.0.mlp.up_proj", dense, True)
    assert quantized.dense is None
    values = pack(quantized, "bf16").unpack()
    exact = weight.astype(np.float32)
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


def by_maximum(top: float, levels: np.ndarray | None, group: int) -> float:
    """The same error with scales that map the largest magnitude to the largest level."""
    x = WEIGHT.astype(np.float32).reshape(-1, group)
    scale = np.abs(x).max(1, keepdims=True) / top
    y = np.rint(x / scale)
    if levels is not None:
        y = levels[np.abs((x / scale)[..., None] - levels).argmin(-1)]
    return float(np.linalg.norm(y * scale - x) / np.linalg.norm(x))


def test_every_name_is_known() -> None:
    assert tuple(METHODS) == ONLINE_METHODS


@pytest.mark.parametrize(
    ("name", "most"), [("int8", 0.02), ("fp8", 0.03), ("fp8_per_tensor", 0.03)]
)
def test_errors_of_eight_bits(name: str, most: float) -> None:
    assert error(name) < most


def test_scales_by_error_are_better_than_by_maximum() -> None:
    assert error("int8") <= by_maximum(127, None, 256)
    assert error("bitsandbytes") < 0.97 * by_maximum(1, NF4, 64)
    assert error("int4") < 0.8 * by_maximum(7, None, 32)
    levels = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert error("fp8") <= by_maximum(448, levels[np.isfinite(levels)], 256)


@pytest.mark.parametrize("name", METHODS)
def test_zeros_and_constants(name: str) -> None:
    weight = np.zeros((64, 128), ml_dtypes.bfloat16)
    weight[3] = 0.5
    dense = online.QuantizedWeight(dense=weight)
    values = METHODS[name]("up_proj", dense, True).to_float32()
    np.testing.assert_allclose(values, weight.astype(np.float32), rtol=2e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make(CASES["llama-rope-default"]).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ["int8", "fp8", "int4", "bitsandbytes"])
def test_a_model_is_that_of_its_dequantised_weights(name: str) -> None:
    checkpoint = StateDict(make(CASES["llama-rope-default"]))
    checkpoint.model_info = dataclasses.replace(checkpoint.model_info, online=name)
    ids = np.random.default_rng(0).integers(3, 131, 40)
    backend = CpuBackend("f32", threads=1)
    got = solo_logits(backend.build(load(checkpoint, backend), LIMITS), ids, [40])
    plain = StateDict(make(CASES["llama-rope-default"]))
    for key, values in plain.arrays.items():
        if key.endswith("_proj.weight"):
            weight = online.QuantizedWeight(dense=values)
            plain.arrays[key] = METHODS[name](key, weight, False).to_float32()
    want = solo_logits(backend.build(load(plain, backend), LIMITS), ids, [40])
    assert np.abs(got - want).max() < 2e-3 * np.abs(want).max()


def test_a_server_model(folder: Path) -> None:
    """Weights shrink as `galley inspect` says, the head stays."""
    params = SamplingParams(max_tokens=5, temperature=0)
    sizes = {}
    for name in (None, "int8"):
        flags = {"quantization": name, "skip_tokenizer_init": True, "max_model_len": 64}
        with LLM(str(folder), **flags) as llm:
            llm.generate([{"prompt_token_ids": [5, 6, 7]}], params, use_tqdm=False)
            [memory] = llm._core.executor.rpc("memory")
            sizes[name] = memory["weights"]
        source = resolve_source(ModelConfig(model=str(folder), quantization=name), LoadConfig())
        assert weight_bytes(open_checkpoint(source), "bf16") == sizes[name]
    assert sizes["int8"] < 0.75 * sizes[None]


def test_names_that_contradict_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not quantized.*int4"):
        LLM(str(folder), quantization="awq")
    with pytest.raises(ConfigError, match="the checkpoint's is gguf"):
        LLM(quantization="int8")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ConfigError, match="the checkpoint's is gptq"):
        LLM(str(tmp_path), quantization="int8", skip_tokenizer_init=True)
