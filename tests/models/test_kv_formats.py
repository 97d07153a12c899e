"""Models with a KV cache of eight-bit numbers, and how the format is chosen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from galley.config import CacheConfig, ModelInfo
from galley.errors import ConfigError, ModelError
from galley.kernels.cpu import CpuBackend
from galley.kernels.ops import KVLayer, LatentLayer
from galley.kernels.reference import ReferenceBackend
from galley.kv.format import KVFormat
from galley.loader import RawTensor
from galley.quant.kv_cache import checkpoint_kv_format
from galley.runner.kv_format import kv_format
from tests.models import families, mixtures
from tests.models.checkpoints import CASES, StateDict, make
from tests.models.driver import LIMITS, load, solo_logits

FP8 = KVFormat("fp8_e4m3")
SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
INFO = ModelInfo("LlamaForCausalLM", {}, 100, 100, "bfloat16")
LENGTH = 100
ALL = {**CASES, **families.FAMILIES, **mixtures.FAMILIES}


def logits(backend, checkpoint, chunks: list[int]) -> np.ndarray:
    ids = np.random.default_rng(0).integers(3, 131, LENGTH)
    return solo_logits(backend.build(load(checkpoint, backend), LIMITS), ids, chunks)


@pytest.mark.parametrize(
    ("case", "kv"),
    [
        ("llama-rope-default", FP8),
        ("llama-rope-default", KVFormat("int8", True)),
        ("gemma2", KVFormat("fp8_e5m2", True)),
        ("deepseek-v3", FP8),
        ("gemma2", KVFormat("int8", True, frozenset({0}), "float32")),
        ("deepseek-v3", KVFormat("fp8_e5m2", False, frozenset({1, 2}))),
    ],
)
def test_native_equals_reference(case: str, kv: KVFormat) -> None:
    checkpoint = StateDict(make(ALL[case]))
    native = CpuBackend("f32", threads=1, kv=kv)
    whole = logits(native, checkpoint, [LENGTH])
    np.testing.assert_array_equal(logits(native, checkpoint, [60, 1, 1, 38]), whole)
    reference = logits(ReferenceBackend("f32", kv=kv), checkpoint, [LENGTH])
    plain = logits(ReferenceBackend("f32"), checkpoint, [LENGTH])
    # Queries and probabilities are rounded to bfloat16, and a rounded number may become another
    # code; what the format itself loses is more.
    assert np.abs(whole - reference).mean() < 0.5 * np.abs(plain - reference).mean()


class Scaled:
    """A checkpoint with scales of its KV cache."""

    def __init__(self, checkpoint: StateDict, tensors: dict[str, np.ndarray]) -> None:
        self.model_info = checkpoint.model_info
        self._checkpoint, self._tensors = checkpoint, tensors

    def names(self) -> list[str]:
        return [*self._checkpoint.names(), *self._tensors]

    def header(self, name: str):
        return self.tensor(name) if name in self._tensors else self._checkpoint.header(name)

    def tensor(self, name: str) -> RawTensor:
        if name not in self._tensors:
            return self._checkpoint.tensor(name)
        values = self._tensors[name]
        return RawTensor(name, values.shape, "float32", values)


@pytest.mark.parametrize("names", ["self_attn.{}_scale", "self_attn.{}_proj.{}_scale"])
def test_scales_of_the_checkpoint(names: str) -> None:
    """Scales far too large leave few codes; a cache without codes ignores them."""
    checkpoint = StateDict(make(CASES["llama-rope-default"]))
    one = {
        f"model.layers.{i}." + names.replace("{}", kind): np.array([64.0], np.float32)
        for i in range(3)
        for kind in "kv"
    }
    backend = CpuBackend("f32", threads=1, kv=FP8)
    layers = load(Scaled(checkpoint, one), backend).kv_layers
    assert [(layer.k_scale, layer.v_scale) for layer in layers] == [(64.0, 64.0)] * 3
    coarse = logits(backend, Scaled(checkpoint, one), [LENGTH])
    reference = logits(ReferenceBackend("f32", kv=FP8), Scaled(checkpoint, one), [LENGTH])
    fine = logits(backend, checkpoint, [LENGTH])
    assert np.abs(coarse - reference).mean() < 0.2 * np.abs(coarse - fine).mean()
    plain = CpuBackend("f32", threads=1)
    np.testing.assert_array_equal(
        logits(plain, Scaled(checkpoint, one), [LENGTH]), logits(plain, checkpoint, [LENGTH])
    )


@pytest.mark.parametrize("values", [[0.0], [-1.0], [np.inf], [np.nan], [1.0, 2.0]])
def test_bad_scales_are_refused(values: list[float]) -> None:
    checkpoint = StateDict(make(CASES["llama-rope-default"]))
    name = "model.layers.1.self_attn.k_scale"
    with pytest.raises(ModelError, match=name):
        load(Scaled(checkpoint, {name: np.array(values, np.float32)}), CpuBackend(threads=1))


def test_choice() -> None:
    layers, latent = [KVLayer(0, 1, 16)], [LatentLayer(0, 16, 8)]
    assert kv_format(CacheConfig(), "f32", INFO, layers) == KVFormat("float32")
    assert kv_format(CacheConfig(), "bf16", INFO, layers) == KVFormat("bfloat16")
    fp8 = CacheConfig(kv_cache_dtype="fp8")
    assert kv_format(fp8, "bf16", INFO, latent) == FP8
    calculated = dataclasses.replace(fp8, calculate_kv_scales=True)
    assert kv_format(calculated, "bf16", INFO, layers) == KVFormat("fp8_e4m3", True)
    with pytest.raises(ConfigError, match="latent"):
        kv_format(calculated, "bf16", INFO, latent)
    in_float32 = kv_format(fp8, "f32", INFO, layers)
    assert in_float32 == KVFormat("fp8_e4m3", plain="float32")
    with pytest.raises(ConfigError, match="has no scales"):
        kv_format(CacheConfig(calculate_kv_scales=True), "bf16", INFO, layers)


def test_layers_that_are_skipped() -> None:
    layers = [KVLayer(i, 1, 16, window, number=i) for i, window in enumerate((0, 8, 0, 8))]

    def skipping(*names: str) -> KVFormat:
        cache = CacheConfig(kv_cache_dtype="fp8", kv_cache_dtype_skip_layers=names)
        return kv_format(cache, "bf16", INFO, layers)

    numbers = skipping("0", "sliding_window")
    assert [numbers.of(i).name for i in (-1, 0, 1, 2, 3)] == [
        *("fp8_e4m3", "bfloat16", "bfloat16", "fp8_e4m3", "bfloat16"),
    ]
    assert [layer.cache(numbers).token_bytes for layer in layers] == [64, 64, 32, 64]
    with pytest.raises(ConfigError, match="layers 4: the model has no such layer"):
        skipping("4")
    with pytest.raises(ConfigError, match=r"layers linear: .* from 0 to 3"):
        skipping("linear")


def info(**config: object) -> ModelInfo:
    return dataclasses.replace(INFO, hf_config={"quantization_config": config})


def test_what_a_checkpoint_declares() -> None:
    assert checkpoint_kv_format(info(kv_cache_scheme=SCHEME)) == FP8
    assert checkpoint_kv_format(info(kv_cache_quant_algo="FP8")) == FP8
    assert checkpoint_kv_format(info(kv_cache_scheme=None)) is None
    declared = info(kv_cache_scheme=SCHEME)
    assert kv_format(CacheConfig(), "bf16", declared, []) == FP8
    plain = CacheConfig(kv_cache_dtype="bfloat16")
    assert kv_format(plain, "bf16", declared, []) == KVFormat("bfloat16")
    for key, value in (("num_bits", 4), ("type", "int"), ("dynamic", True), ("strategy", "group")):
        with pytest.raises(ModelError, match=f"kv_cache_scheme.{key}"):
            checkpoint_kv_format(info(kv_cache_scheme={**SCHEME, key: value}))
    with pytest.raises(ModelError, match="NVFP4"):
        checkpoint_kv_format(info(kv_cache_quant_algo="NVFP4"))
