"""Tiny random drafters for the models of the cases."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

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
    if method in ("medusa", "mlp_speculator"):
        heads = _medusa if method == "medusa" else _mlp_speculator
        return write(folder, config | heads(made, hidden, vocab), made.tensors)
    layer, norms, columns, further = _LAYERS[method]
    kv = hidden // 2
    shapes = {"q": (hidden, columns), "k": (kv, columns), "v": (kv, columns), "o": (hidden, 1)}
    for name, (rows, times) in shapes.items():
        made.matrix(f"{layer}self_attn.{name}_proj.weight", rows, times * hidden)
        if method == "mtp" and name != "o":
            made.matrix(f"{layer}self_attn.{name}_proj.bias", rows)
    for name in ("gate", "up", "down"):
        made.matrix(f"{layer}mlp.{name}_proj.weight", hidden, hidden)
    for name in ("post_attention_layernorm", *norms):
        made.norm(f"{layer}{name}.weight", hidden)
    if method == "eagle":
        made.keep("fc.weight", torch.eye(hidden, 2 * hidden))
    elif method == "eagle3":
        made.keep("fc.weight", torch.eye(hidden, 3 * hidden))
        made.norm("norm.weight", hidden)
    elif method == "mtp":
        made.keep(f"{layer}input_proj.weight", torch.eye(hidden, 2 * hidden))
    else:
        made.norm("model.norm.weight", hidden)
        made.matrix("model.embed_tokens.weight", vocab, hidden)
        made.matrix("lm_head.weight", vocab, hidden)
    config |= {"intermediate_size": hidden, "num_hidden_layers": 1, **_SIZES, **further}
    return write(folder, config, made.tensors)


#: Method → prefix of its layer, norms beside the MLP's, hidden states that attention reads, config.
_LAYERS: dict[str, tuple[str, tuple[str, ...], int, dict[str, Any]]] = {
    "draft_model": (
        "model.layers.0.",
        ("input_layernorm",),
        1,
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    ),
    "eagle": ("layers.0.", (), 1, {}),
    "eagle3": (
        "midlayer.",
        ("input_layernorm", "hidden_norm"),
        2,
        {
            "architectures": ["LlamaForCausalLMEagle3"],
            "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 1]},
        },
    ),
    "mtp": (
        "model.mtp_layers.0.",
        ("input_layernorm", "token_layernorm", "hidden_layernorm", "final_layernorm"),
        1,
        {"architectures": ["MiMoForCausalLM"], "model_type": "mimo"},
    ),
}


def _medusa(made: Random, hidden: int, vocab: int) -> dict[str, Any]:
    for head in range(2):
        made.matrix(f"blocks.{head}.layers.0.weight", hidden, hidden)
        made.matrix(f"lm_heads.{head}.weight", vocab, hidden)
    return {"model_type": "medusa", "num_heads": 2, "num_hidden_layers": 1}


def _mlp_speculator(made: Random, hidden: int, vocab: int) -> dict[str, Any]:
    for head in range(2):
        for name, rows in (("emb", vocab), ("proj", hidden), ("head", vocab)):
            made.matrix(f"speculator.{name}.{head}.weight", rows, hidden)
        made.norm(f"speculator.ln.{head}.weight", hidden)
        made.matrix(f"speculator.ln.{head}.bias", hidden)
    sizes = {"n_predict": 2, "emb_dim": hidden, "inner_dim": hidden}
    return {"model_type": "mlp_speculator", **sizes}
