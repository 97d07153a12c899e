"""A checkpoint of random weights, for tests and for measuring without a download.

Made from the facts alone, tensor by tensor as they are asked for; equal for equal seeds. Knows the
tensor names of Llama-like models (Llama, Mistral, Qwen2, Qwen3) and no file.
"""

from __future__ import annotations

import zlib

import ml_dtypes
import numpy as np

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.loader.fields import Fields
from galley.loader.tensor import RawTensor

#: Standard deviation of the weights: small, so that activations stay small over many layers.
SCALE = 0.02
_NUMPY = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class DummyCheckpoint:
    """Tensors of the facts' dtype (bfloat16 for quantised facts); norms are ones."""

    def __init__(self, model_info: ModelInfo, seed: int = 0) -> None:
        self.model_info = model_info
        self._seed = seed & (2**64 - 1)
        self._dtype = model_info.dtype if model_info.dtype in _NUMPY else "bfloat16"
        self._shapes = tensor_shapes(model_info)

    def names(self) -> list[str]:
        return list(self._shapes)

    def tensor(self, name: str) -> RawTensor:
        shape = self._shapes.get(name)
        if shape is None:
            raise ModelError(f"{self.model_info.source}: has no tensor {name}")
        if name.endswith("norm.weight"):
            values = np.ones(shape, np.float32)
        else:
            random = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
            values = random.standard_normal(shape, np.float32) * np.float32(SCALE)
        return RawTensor(name, shape, self._dtype, values.astype(_NUMPY[self._dtype]))


def tensor_shapes(model_info: ModelInfo) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a Llama-like model."""
    config = Fields(model_info.hf_config, model_info.source)
    hidden, inner = model_info.hidden_size, config.integer("intermediate_size", least=1)
    queries, keys = (
        model_info.num_heads * model_info.head_dim,
        model_info.num_kv_heads * model_info.head_dim,
    )
    qwen2 = model_info.architecture.startswith("Qwen2")
    qkv_bias = qwen2 or config.flag("attention_bias", False)
    linears = {
        "self_attn.q_proj": (queries, hidden, qkv_bias),
        "self_attn.k_proj": (keys, hidden, qkv_bias),
        "self_attn.v_proj": (keys, hidden, qkv_bias),
        "self_attn.o_proj": (hidden, queries, qkv_bias and not qwen2),
        "mlp.gate_proj": (inner, hidden, config.flag("mlp_bias", False)),
        "mlp.up_proj": (inner, hidden, config.flag("mlp_bias", False)),
        "mlp.down_proj": (hidden, inner, config.flag("mlp_bias", False)),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if model_info.architecture.startswith("Qwen3"):
        norms |= {"self_attn.q_norm": model_info.head_dim, "self_attn.k_norm": model_info.head_dim}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (model_info.vocab_size, hidden)
    }
    for layer in range(model_info.num_layers):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns, bias) in linears.items():
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}.{name}.bias"] = (rows,)
        shapes |= {f"{prefix}.{name}.weight": (size,) for name, size in norms.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.flag("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (model_info.vocab_size, hidden)
    return shapes
