"""K types that are written read as values near the given ones, as near as llama.cpp's."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from galley.quant.write_gguf_k import ENCODERS

#: Type → the error of llama.cpp's encoder on these values, as a part of their norm.
ERRORS = {"Q4_K": 0.0870, "Q5_K": 0.0438, "Q6_K": 0.0229}


@pytest.mark.parametrize("name", ENCODERS)
def test_values_are_near(name):
    values = (np.random.default_rng(0).standard_t(4, (2, 32, 1024)) * 0.02).astype(np.float32)
    blocks = ENCODERS[name](values)
    assert blocks.shape == gguf.quant_shape_to_byte_shape(values.shape, Type[name])
    error = gguf.dequantize(blocks, Type[name]) - values
    assert np.linalg.norm(error) <= 1.02 * ERRORS[name] * np.linalg.norm(values)


@pytest.mark.parametrize("low", [0.0, 5.0, -6.0])
@pytest.mark.parametrize("name", ENCODERS)
def test_groups_of_one_sign_and_of_zeros(name, low):
    values = np.random.default_rng(1).uniform(low, low + 1, (4, 512)).astype(np.float32)
    values[1, 32:64] = values[2] = 0
    got = gguf.dequantize(ENCODERS[name](values), Type[name])
    assert not got[2].any()
    assert np.abs(got - values).max() <= 0.04 * np.abs(values).max()
