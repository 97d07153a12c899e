"""MXFP4 experts of gpt-oss: a model against its dequantized weights."""

from __future__ import annotations

import numpy as np
import pytest

from galley.errors import ModelError
from galley.models.footprint import weight_bytes
from tests.models.checkpoints import StateDict, make
from tests.models.mixtures import FAMILIES
from tests.quant.test_fp4 import fp4_values
from tests.quant.twins import raw
from tests.runner.models import ArrayCheckpoint, open_runner
from tests.runner.test_quality import teacher_forced


def codes_of(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Random blocks and scales of [experts, N, K], and their values."""
    experts, n, k = shape
    blocks = rng.integers(0, 256, (experts, n, k // 32, 16), np.uint8)
    scales = rng.integers(119, 123, (experts, n, k // 32), np.uint8)
    values = fp4_values(blocks.reshape(experts * n, k // 2))
    powers = np.float32(2) ** (scales.reshape(experts * n, -1).astype(np.float32) - 127)
    return blocks, scales, (values * powers.repeat(32, axis=1)).reshape(shape)


def test_experts_equal_their_dequantized_weights():
    model = make(FAMILIES["gpt-oss"])
    state = StateDict(model, quantization_config={"quant_method": "mxfp4"})
    rng = np.random.default_rng(0)
    quantized, floats = {}, {}
    for name in state.names():
        tensor = state.tensor(name)
        if not name.endswith(("gate_up_proj", "down_proj")):
            quantized[name] = floats[name] = tensor
            continue
        experts, k, n = tensor.shape
        blocks, scales, values = codes_of((experts, n, k), rng)
        quantized |= {
            f"{name}_{kind}": raw(f"{name}_{kind}", array)
            for kind, array in (("blocks", blocks), ("scales", scales))
        }
        floats[name] = raw(name, np.ascontiguousarray(values.swapaxes(1, 2)))
    ids = np.random.default_rng(1).integers(0, 131, (2, 40))
    dense = ArrayCheckpoint(StateDict(model).model_info, floats)
    codes = ArrayCheckpoint(state.model_info, quantized)
    got, want = (
        teacher_forced(open_runner(checkpoint, max_model_len=64, dtype="float32"), ids)
        for checkpoint in (codes, dense)
    )
    assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()
    assert weight_bytes(codes, "f32") < weight_bytes(dense, "f32")
    damaged = "model.layers.0.mlp.experts.gate_up_proj_scales"
    quantized[damaged] = raw(damaged, quantized[damaged].data.astype(np.int8))
    with pytest.raises(ModelError, match="gate_up_proj_scales is int8; uint8 is needed"):
        open_runner(ArrayCheckpoint(state.model_info, quantized), max_model_len=64)
