"""Every family on the native backend: against transformers, and equal bits however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galley.kernels._native import isa
from galley.kernels.activations import activation_kind
from galley.kernels.cpu import CpuBackend
from galley.kernels.program import Kind
from galley.kernels.reference import ReferenceBackend, ReferenceOps
from galley.kernels.weights import pack
from galley.loader.tensor import RawTensor
from tests.models.checkpoints import (
    CASES,
    Case,
    StateDict,
    hf_logits,
    in_bfloat16,
    make,
    quantized,
)
from tests.models.driver import LIMITS, Driver, load, solo_logits

IDS = np.random.default_rng(1).integers(0, 131, 75)


def build(checkpoint, dense: str, threads: int = 2, eager: bool = False, quantized: str = "auto"):
    backend = CpuBackend(dense, threads, eager, quantized)
    return backend.build(load(checkpoint, backend), LIMITS)


@pytest.mark.parametrize("name", list(CASES))
def test_float32_equals_transformers(name):
    model = make(CASES[name])
    want = hf_logits(model, IDS)
    got = solo_logits(build(StateDict(model), "f32"), IDS, [75])
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", list(CASES))
def test_bfloat16_errors_are_those_of_torch(name):
    """Against float32 on the same rounded weights, no worse than transformers in bfloat16."""
    model = in_bfloat16(make(CASES[name]))
    theirs = hf_logits(model, IDS)
    exact = hf_logits(model.float(), IDS)
    got = solo_logits(build(StateDict(model), "bf16"), IDS, [75])
    error, their_error = (np.square(x - exact).mean() for x in (got, theirs))
    # Where experts have nearly equal scores, rounding chooses: by chance, for both.
    assert error <= their_error * (2 if CASES[name].has_experts else 1)


@pytest.mark.parametrize("dense", ["f32", "bf16"])
@pytest.mark.parametrize(
    "name", ["llama-biases", "mistral-window", "mixtral-window", "qwen2-windows", "qwen3"]
)
def test_no_bit_depends_on_chunks_batch_or_threads(name, dense):
    checkpoint = StateDict(make(CASES[name]))
    whole = solo_logits(build(checkpoint, dense), IDS, [75])
    single = build(checkpoint, dense, threads=1)
    for chunks in ([13, 1, 30, 16, 15], [40] + [1] * 35):
        assert np.array_equal(solo_logits(single, IDS, chunks), whole)
    driver = Driver(build(checkpoint, dense, eager=True), block_size=64, seed=1)
    driver.put(5, IDS)
    driver.put(0, IDS[:40])
    driver.put(2, IDS)
    first = driver.step({5: 20, 0: 39})
    second = driver.step({2: 75, 0: 1, 5: 55})
    assert np.array_equal(np.concatenate([first[:20], second[76:]]), whole)
    assert np.array_equal(second[:75], whole)
    assert np.array_equal(np.concatenate([first[20:], second[75:76]]), whole[:40])


class Quantized(StateDict):
    """Matrices quantised to GGUF types; some names to another type than the rest."""

    def __init__(self, model, dtype: str, others: dict[str, str]) -> None:
        super().__init__(model)
        self._types = {
            name: next((t for part, t in others.items() if part in name), dtype)
            for name, array in self.arrays.items()
            if array.ndim == 2
        }

    def tensor(self, name):
        return quantized(name, self.arrays[name], self._types.get(name, "float32"))


MIXES = {
    "Q4_0": ("Q4_0", {}),
    "Q4_1": ("Q4_1", {"embed": "Q8_0"}),
    "Q5_0": ("Q5_0", {}),
    "Q5_1": ("Q5_1", {}),
    "Q8_0": ("Q8_0", {}),
    "v in Q8_0": ("Q4_0", {"v_proj": "Q8_0"}),
    "up in bfloat16": ("Q4_1", {"up_proj": "bfloat16", "o_proj": "float32"}),
    "only down": ("float32", {"down_proj": "Q4_0"}),
    "MXFP4": ("MXFP4", {}),
}


class RoundingBackend(ReferenceBackend):
    """The reference with activations rounded as native kernels round them before weights of codes:
    to int8 or int16, one scale per 32, or to bfloat16."""

    def __init__(self, quantized: str = "auto") -> None:
        super().__init__()
        self._quantized = quantized

    def weight(self, data, float32=False):
        weight = super().weight(data, float32)
        weight.round_input = torch.Tensor.float
        if data.dense is None:
            kind = activation_kind(pack(data).format, self._quantized)
            rows = {Kind.q8: int8_rows, Kind.q16: int16_rows, Kind.bf16: bf16_rows}
            weight.round_input = rows[kind]
        return weight

    def build(self, model, limits):
        executable = super().build(model, limits)
        executable._reference = RoundingOps()
        return executable


class RoundingOps(ReferenceOps):
    def run(self, op, *args):
        if op.name != "linear":
            return super().run(op, *args)
        x, weights, bias = args
        y = torch.cat([op.reference(self, w.round_input(x), [w], None) for w in weights], dim=-1)
        return y if bias is None else y + bias


def int8_rows(x: torch.Tensor) -> torch.Tensor:
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((groups / scale).round() * scale).flatten(-2)


def int16_rows(x: torch.Tensor) -> torch.Tensor:
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 32639
    q = (groups / scale).round()
    q += (q + 128) % 256 == 0  # no low byte is -128
    return (q * scale).flatten(-2)


def bf16_rows(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


#: Where a value lies between two codes, the last bit of a float decides. Of 8 bits few do, and
#: those rows are far off; of 16 bits some do in every row, and move it little.
MEDIAN_ERRORS = {"int8": 1e-5, "int16": 2e-4} | ({"bf16": 1e-5} if isa() == "amx" else {})


@pytest.mark.parametrize("name", list(MIXES))
@pytest.mark.parametrize("activations", list(MEDIAN_ERRORS))
def test_quantised_checkpoints(activations, name):
    """Against the reference on the same weights, with activations rounded alike."""
    dtype, others = MIXES[name]
    case = Case("Llama", {"attention_bias": True, "hidden_size": 128, "intermediate_size": 160})
    checkpoint = Quantized(make(case), dtype, others)
    rounding = RoundingBackend(activations)
    want = short_sequences(rounding.build(load(checkpoint, rounding), LIMITS))
    fused = build(checkpoint, "f32", quantized=activations)
    eager = build(checkpoint, "f32", eager=True, quantized=activations)
    got = short_sequences(fused)
    error = np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1)
    assert np.median(error) <= MEDIAN_ERRORS[activations]
    assert error.max() <= 0.05
    whole = solo_logits(fused, IDS, [75])
    assert np.array_equal(solo_logits(fused, IDS, [20, 1, 54]), whole)
    assert np.array_equal(solo_logits(eager, IDS, [70, 5]), whole)


#: Types of 256 values: bytes per block, and where its float16 scales are with what they may be.
K_BLOCKS = {
    "Q4_K": (144, {0: 4e-4, 2: 3e-3}),
    "Q5_K": (176, {0: 2e-4, 2: 3e-3}),
    "Q6_K": (210, {208: 4e-5}),
    "IQ4_XS": (136, {0: 5e-5}),
}


class KQuantized(StateDict):
    """Matrices of random blocks (there is no other writer of these types in Python)."""

    def __init__(self, model, types: list[str]) -> None:
        super().__init__(model)
        rng = np.random.default_rng(0)
        self.tensors = {}
        matrices = [name for name, array in self.arrays.items() if array.ndim == 2]
        for i, name in enumerate(matrices):
            dtype, (n, k) = types[i % len(types)], self.arrays[name].shape
            size, scales = K_BLOCKS[dtype]
            blocks = rng.integers(0, 256, (n, k // 256, size), np.uint8)
            for at, value in scales.items():
                blocks[..., at : at + 2] = np.array([value], np.float16).view(np.uint8)
            self.tensors[name] = RawTensor(name, (n, k), dtype, blocks.reshape(n, -1))

    def tensor(self, name):
        return self.tensors.get(name) or super().tensor(name)


@pytest.mark.parametrize(
    "types", [["Q4_K"], ["Q5_K"], ["Q6_K"], ["IQ4_XS"], ["Q4_K", "Q6_K", "Q5_K", "IQ4_XS"]]
)
def test_k_types(types):
    case = Case("Llama", {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64})
    checkpoint = KQuantized(make(case), types)
    rounding = RoundingBackend()
    want = short_sequences(rounding.build(load(checkpoint, rounding), LIMITS))
    fused, eager = build(checkpoint, "f32"), build(checkpoint, "f32", eager=True)
    got = short_sequences(fused)
    error = np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1)
    assert np.median(error) <= MEDIAN_ERRORS["int16"]
    assert error.max() <= 0.05
    assert np.array_equal(short_sequences(eager), got)


def short_sequences(executable) -> np.ndarray:
    """Logits of 8 sequences of 2 tokens."""
    driver = Driver(executable)
    for slot in range(8):
        driver.put(slot, IDS[2 * slot : 2 * slot + 2])
    return driver.step(dict.fromkeys(range(8), 2))
