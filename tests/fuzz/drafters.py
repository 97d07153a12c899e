"""Tiny random drafters for the models of the cases."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from tests.spec.heads import Random, write

_SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="drafters-")


@functools.cache
def drafter(method: str, hidden: int, vocab: int, length: int) -> Path:
    """A checkpoint for --speculative-config.method, of a model with these sizes."""
    folder, made = Path(_folder().name) / method, Random(9)
    config = {"hidden_size": hidden, "vocab_size": vocab, "max_position_embeddings": length}
    if method == "medusa":
        for head in range(2):
            made.matrix(f"blocks.{head}.layers.0.weight", hidden, hidden)
            made.matrix(f"lm_heads.{head}.weight", vocab, hidden)
        config |= {"model_type": "medusa", "num_heads": 2, "num_hidden_layers": 1}
        return write(folder, config, made.tensors)
    prefix = "" if method == "eagle" else "model."
    kv, layer = hidden // 2, f"{prefix}layers.0."
    shapes = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
    for name, shape in shapes.items():
        made.matrix(f"{layer}self_attn.{name}_proj.weight", *shape)
    for name in ("gate", "up", "down"):
        made.matrix(f"{layer}mlp.{name}_proj.weight", hidden, hidden)
    made.norm(f"{layer}post_attention_layernorm.weight", hidden)
    config |= {"intermediate_size": hidden, "num_hidden_layers": 1, **_SIZES}
    if method == "eagle":
        made.keep("fc.weight", torch.eye(hidden, 2 * hidden))
    else:
        config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        made.norm(f"{layer}input_layernorm.weight", hidden)
        made.norm("model.norm.weight", hidden)
        made.matrix("model.embed_tokens.weight", vocab, hidden)
        made.matrix("lm_head.weight", vocab, hidden)
    return write(folder, config, made.tensors)
