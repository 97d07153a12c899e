"""Loading with several threads: the same weights, and little more memory than they take."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loading import LIMIT, write
from galley.errors import ModelError
from galley.kernels.backend import open_backend
from galley.kernels.weights import WeightMemory
from galley.loader import Checkpoint, open_checkpoint
from galley.loader.source import Source
from galley.models.decoder import Stage
from galley.runner.load import LoadedModel, load_model


@pytest.fixture(scope="module", params=["bfloat16", "gptq"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 20 MB and many layers."""
    path = tmp_path_factory.mktemp(request.param)
    write(
        path,
        0.02 if request.param == "gptq" else 0.06,
        request.param == "gptq",
        hidden=256,
        vocab=512,
    )
    return path


def load(checkpoint: Checkpoint, threads: int) -> LoadedModel:
    backend = open_backend("cpu", "bf16", threads=1)
    return load_model(checkpoint.model_info, checkpoint, backend, Stage(64), threads=threads)


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(Source(folder, "safetensors", "m"))


def test_several_threads_pack_the_same_weights(folder: Path) -> None:
    one, many = (load(opened(folder), threads).model for threads in (1, 3))
    assert len(one.layers) == len(many.layers) > 10
    for ours, theirs in zip(one.layers, many.layers, strict=True):
        for a, b in zip(linears(ours), linears(theirs), strict=True):
            assert a.format == b.format
            assert np.array_equal(a.data, b.data)


def linears(layer):
    parts = (layer.mixer.qkv, layer.mixer.out, layer.mlp.gate_up, layer.mlp.down)
    return [weight for linear in parts for weight in linear.weights]


@pytest.mark.parametrize("threads", [1, 8])
def test_loading_takes_little_more_memory_than_the_packed_weights(
    folder: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightMemory, "_LARGE", 0)  # small weights share blocks of 32 MiB
    checkpoint = opened(folder)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        loaded = load(checkpoint, threads)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert loaded.weight_bytes > 18e6
    assert loaded.weight_bytes < peak < LIMIT * loaded.weight_bytes


def test_a_missing_tensor_ends_all_threads(folder: Path) -> None:
    checkpoint = opened(folder)
    names = [n for n in checkpoint.names() if not n.startswith("model.layers.3.mlp.up_proj.")]
    checkpoint.names = lambda: names
    with pytest.raises(ModelError, match=r"no tensor model\.layers\.3\.mlp\.up_proj"):
        load(checkpoint, 3)
