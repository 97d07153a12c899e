"""Layers of one model may differ: in heads, sizes, norms, window and rotary embedding.

The expected logits are transformers' own layers of different configurations, one after the other.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from galley.config import ModelInfo
from galley.kernels.backend import open_backend
from galley.layers.weights import CheckpointWeights
from galley.loader.tensor import RawTensor, TensorHeader
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, Stage
from galley.models.llama import decoder, layer, read_sizes
from tests.models.driver import LIMITS, MAX_LEN, solo_logits

VOCAB, HIDDEN, LENGTH = 131, 64, 75
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
}
#: Of each layer: transformers' config, and the window.
LAYERS = [
    (
        LlamaConfig,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 96,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        7,
    ),
    (
        Qwen3Config,
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "intermediate_size": 64,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
        },
        0,
    ),
    (
        LlamaConfig,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "intermediate_size": 160,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        21,
    ),
]


class Mixed(torch.nn.Module):
    """transformers' layers, each made from its own config."""

    def __init__(self) -> None:
        super().__init__()
        self.configs = [kind(**COMMON, **config) for kind, config, _ in LAYERS]
        self.embed_tokens = torch.nn.Embedding(VOCAB, HIDDEN)
        self.layers = torch.nn.ModuleList(
            (Qwen3DecoderLayer if isinstance(c, Qwen3Config) else LlamaDecoderLayer)(c, 0)
            for c in self.configs
        )
        self.norm = LlamaRMSNorm(HIDDEN, 1e-6)
        self.lm_head = torch.nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, positions = self.embed_tokens(ids)[None], torch.arange(len(ids))
        distance = positions[:, None] - positions[None, :]
        for module, config, (_, _, window) in zip(self.layers, self.configs, LAYERS, strict=True):
            seen = (distance >= 0) & (distance < (window or len(ids)))
            mask = torch.where(seen, 0.0, -torch.inf)[None, None]
            rotary = LlamaRotaryEmbedding(config)(x, positions[None])
            x = module(x, attention_mask=mask, position_embeddings=rotary)
        return self.lm_head(self.norm(x))[0]


class Arrays:
    model_info = ModelInfo("", {}, vocab_size=VOCAB, max_position=256, dtype="float32")

    def __init__(self, model: Mixed) -> None:
        self.arrays = {
            name if name.startswith("lm_head") else f"model.{name}": t.detach().numpy()
            for name, t in model.state_dict().items()
        }

    def names(self) -> list[str]:
        return list(self.arrays)

    def header(self, name: str) -> TensorHeader:
        return TensorHeader(tuple(self.arrays[name].shape), "float32")

    def tensor(self, name: str) -> RawTensor:
        data = self.arrays[name]
        return RawTensor(name, tuple(data.shape), "float32", data)


def spec() -> DecoderSpec:
    layers = []
    for i, (kind, config, window) in enumerate(LAYERS):
        hf_config = {**kind(**COMMON, **config).to_dict(), "tie_word_embeddings": False}
        info = ModelInfo("Mixed", hf_config, VOCAB, max_position=256, dtype="float32")
        sizes = read_sizes(model_fields(info))
        layers.append(layer(sizes, i, window=window, qk_norm=kind is Qwen3Config))
    return decoder(sizes, layers)


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = Mixed().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.12)
    ids = np.random.default_rng(5).integers(0, VOCAB, LENGTH)
    with torch.inference_mode():
        return Arrays(model), ids, model(torch.from_numpy(ids)).numpy()


@pytest.mark.parametrize("chunks", [[LENGTH], [13, 1, 30, 16, 15]], ids=["one prefill", "chunks"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_logits_equal_transformers_layers(case, backend, chunks):
    checkpoint, ids, want = case
    opened = open_backend(backend, "f32", threads=1)
    source = CheckpointWeights(checkpoint, opened)
    model = spec().build(source, Stage(MAX_LEN))
    source.finish()
    shapes = [(la.index, la.kv_heads, la.head_dim, la.window) for la in model.kv_layers]
    assert shapes == [(0, 2, 16, 7), (1, 3, 32, 0), (2, 1, 16, 21)]
    got = solo_logits(opened.build(model, LIMITS), ids, chunks)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_layers_with_equal_rotary_settings_share_a_table(case):
    backend = open_backend("reference", "f32")
    model = spec().build(CheckpointWeights(case[0], backend), Stage(MAX_LEN))
    first, second, third = (layer.mixer.rotary for layer in model.layers)
    assert first is third
    assert first is not second


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_a_layer_without_rotary_embedding_leaves_q_and_k_as_they_are(case, name):
    """The same as a table whose rows are all the rotation of position 0, by nothing."""
    checkpoint, ids, _ = case
    backend = open_backend(name, "f32", threads=1)
    plain = spec()
    layers = [replace(la, mixer=replace(la.mixer, rotary=None)) for la in plain.layers]
    model = replace(plain, layers=layers).build(
        CheckpointWeights(checkpoint, backend), Stage(MAX_LEN)
    )
    still = plain.build(CheckpointWeights(checkpoint, backend), Stage(MAX_LEN))
    for la in still.layers:
        values = la.mixer.rotary.values
        values[:] = values[:1]
    got, want = (solo_logits(backend.build(m, LIMITS), ids, [LENGTH]) for m in (model, still))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
