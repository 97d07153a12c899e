"""A family's model whose attention is not causal, against transformers with a mask of ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from galley.kernels.cpu import CpuBackend
from galley.kernels.reference import ReferenceBackend
from galley.layers.weights import CheckpointWeights
from galley.models.decoder import Stage
from galley.models.registry import model_spec
from tests.models.checkpoints import CASES, StateDict, make
from tests.models.driver import LIMITS, MAX_LEN, solo_logits

IDS = np.random.default_rng(4).integers(0, 131, 75)


def build(checkpoint, backend):
    spec = model_spec(checkpoint.model_info)
    layers = [replace(layer, mixer=replace(layer.mixer, causal=False)) for layer in spec.layers]
    source = CheckpointWeights(checkpoint, backend)
    model = replace(spec, layers=layers).build(source, Stage(max_positions=MAX_LEN))
    source.finish()
    return backend.build(model, LIMITS)


@pytest.mark.parametrize("name", ["llama-biases", "qwen3"])
def test_a_bidirectional_model_equals_transformers(name):
    model = make(CASES[name])
    ids = torch.from_numpy(IDS)[None].long()
    with torch.inference_mode():
        sees_all = torch.zeros(1, 1, len(IDS), len(IDS))
        want = model(ids, attention_mask=sees_all).logits[0].float().numpy()
        causal = model(ids).logits[0].float().numpy()
    for backend in (ReferenceBackend(), CpuBackend("f32", threads=2)):
        got = solo_logits(build(StateDict(model), backend), IDS, [75])
        assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
        assert np.abs(got - causal).max() > 0.01 * np.abs(causal).max()
