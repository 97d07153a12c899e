"""GGUF's architectures, tensor names and q/k row order in Hugging Face's terms.

One entry per architecture (open set), in the file of its kind; knows no values.
"""

from __future__ import annotations

import re

import numpy as np

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.loader import gguf_dense, gguf_encoders, gguf_experts, gguf_gpt, gguf_states
from galley.loader.fields import MAX_HEAD_DIM, MAX_HEADS, Fields
from galley.loader.gguf_architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "LlamaForCausalLM",
        "llama",
        interleaved_qk=True,
        where=("blk.0.ffn_gate_exps.weight", gguf_experts.MIXTRAL),
    ),
    **gguf_dense.ARCHITECTURES,
    **gguf_encoders.ARCHITECTURES,
    **gguf_experts.ARCHITECTURES,
    **gguf_gpt.ARCHITECTURES,
    **gguf_states.ARCHITECTURES,
}

_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(.+?)(\.weight|\.bias)?")

#: Rope frequency factors: part of the config, not weights.
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def hf_name(name: str, architecture: Architecture) -> str:
    """Hugging Face's name of a GGUF tensor. An unknown name is returned unchanged, and reported as
    unused by `CheckpointWeights.finish`."""
    stem, _, kind = name.rpartition(".")
    if stem in architecture.top:
        return f"{architecture.top[stem]}.{kind}"
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None:
        return name
    layer, stem, kind = match[1], match[2], match[3] or ""
    if not kind and stem.endswith("norm"):  # as the converter names a norm of Falcon-H1
        kind = ".weight"
    names = architecture.in_layer
    if stem + kind in names:
        return f"{architecture.layers}.{layer}.{names[stem + kind]}"
    return f"{architecture.layers}.{layer}.{names[stem]}{kind}" if stem in names else name


def hf_names(name: str, architecture: Architecture) -> list[str]:
    """Hugging Face's names of the parts of a GGUF tensor, nearly always one."""
    match = _LAYER_TENSOR.fullmatch(name)
    if match is not None:
        stem, kind = match[2], match[3] or ""
        for stored, end in ((stem + kind, ""), (stem, kind)):
            if stored in architecture.split:
                parts = architecture.split[stored]
                return [f"{architecture.layers}.{match[1]}.{part}{end}" for part in parts]
    return [hf_name(name, architecture)]


def fused_names(architecture: Architecture, layers: int) -> dict[str, list[str]]:
    """Of each tensor that is several in the file: its name, and their names."""
    return {
        f"{architecture.layers}.{layer}.{name}.weight": [f"blk.{layer}.{p}.weight" for p in parts]
        for layer in range(layers)
        for name, parts in architecture.fused.items()
    }


def rows_by_kv_head(heads: int, kv_heads: int, head_dim: int) -> np.ndarray:
    """int64: the row in the file of each logical row of q, k and v in one tensor.

    logical   q of KV head 0, its k, its v, q of KV head 1, …
    file      all of q, all of k, all of v
    """
    q, kv = heads * head_dim, kv_heads * head_dim
    parts = np.split(np.arange(q + 2 * kv), [q, q + kv])
    return np.concatenate([part.reshape(kv_heads, -1) for part in parts], axis=1).reshape(-1)


def deinterleaved_rows(num_heads: int, head_dim: int) -> np.ndarray:
    """int64 [num_heads * head_dim]: the row in the file of each logical row of q or k.

    The file pairs the two halves of a head, since llama.cpp rotates adjacent elements:

        logical   r0 r1 … r(h-1) | r(h) r(h+1) …        h = head_dim / 2
        file      r0 r(h) r1 r(h+1) …
    """
    in_file = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return np.ascontiguousarray(in_file.swapaxes(1, 2)).reshape(-1)


def row_order(
    name: str,
    shape: tuple[int, ...],
    architecture: Architecture,
    model_info: ModelInfo,
    where: str,
) -> np.ndarray | None:
    """int64: the row in the file of each logical row of a GGUF tensor; None = they are in order.

    Raises ModelError, which begins with `where`, for a number of rows that is not the model's.
    """
    is_query, is_key = ".attn_q." in name, ".attn_k." in name
    is_joined = architecture.joined_qkv and ".attn_qkv." in name
    if not is_joined and not (architecture.interleaved_qk and (is_query or is_key)):
        return None
    config = Fields(model_info.hf_config, where)
    heads = config.integer(
        "num_attention_heads", config.values.get("n_head"), least=1, most=MAX_HEADS
    )
    head_dim = config.integer(
        "head_dim", config.integer("hidden_size") // heads, least=1, most=MAX_HEAD_DIM
    )
    # Configs of models with q, k and v in one tensor have other keys, or none.
    kv_heads = (
        (shape[0] // head_dim - heads) // 2
        if is_joined
        else config.integer("num_key_value_heads", heads, least=1, most=MAX_HEADS)
    )
    in_all = heads + 2 * kv_heads if is_joined else kv_heads if is_key else heads
    if in_all * head_dim != shape[0] or (is_joined and (kv_heads < 1 or heads % kv_heads)):
        raise ModelError(
            f"{where}: {name:.200} has shape {list(shape)}, the model has {in_all} heads of "
            f"{head_dim} rows"
        )
    if is_joined:
        return rows_by_kv_head(heads, kv_heads, head_dim)
    return deinterleaved_rows(in_all, head_dim)
