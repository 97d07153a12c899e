"""GGUF architectures of decoders with attention: what differs from Llama in keys and tensor names.

What llama.cpp has in its code and not in the file is said here: patterns of windows, rotary bases
of layers with a window, the scale of scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from galley.errors import ModelError
from galley.loader.fields import MAX_HEAD_DIM, Fields
from galley.loader.gguf_architecture import LLAMA_NAMES, Architecture

_SANDWICH = {"post_ffw_norm": "post_feedforward_layernorm"}
GEMMA2_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    **_SANDWICH,
}
GLM4_NAMES = {
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}
OLMO2_NAMES = {"post_attention_norm": "post_attention_layernorm", **_SANDWICH}
PHI3_NAMES = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}


def equal_layers(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Keys of a Llama-like model."""
    hidden = meta.integer(f"{arch}.embedding_length", least=1)
    heads = same_in_all_layers(meta, f"{arch}.attention.head_count")
    config: dict[str, Any] = {
        "intermediate_size": same_in_all_layers(meta, f"{arch}.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": same_in_all_layers(meta, f"{arch}.attention.head_count_kv", heads),
        "head_dim": meta.integer(
            f"{arch}.attention.key_length", hidden // heads, least=2, most=MAX_HEAD_DIM
        ),
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_gate.bias" in names,
    }
    window = meta.integer(f"{arch}.attention.sliding_window", 0)
    if window:
        config |= {"sliding_window": window, "use_sliding_window": True}
    return config


def same_in_all_layers(meta: Fields, key: str, default: int | None = None) -> int:
    """A number that may be written once or per layer, but must not differ between layers."""
    value = meta.values.get(key)
    if not isinstance(value, np.ndarray):
        return meta.integer(key, default, least=1)
    if value.size == 0 or (value != value[0]).any():
        raise ModelError(f"{meta.where}: {key} differs between layers, which is not supported")
    return Fields({key: value[0].item()}, meta.where).integer(key, least=1)


def gemma(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return equal_layers(meta, arch, names) | {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
    }


def gemma2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    config = gemma(meta, arch, names)
    return config | {
        "query_pre_attn_scalar": _score_scalar(meta, arch, config, large=46),
        "attn_logit_softcapping": meta.number(f"{arch}.attn_logit_softcapping", 50.0),
        "final_logit_softcapping": meta.number(f"{arch}.final_logit_softcapping", 30.0),
    }


def gemma3(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    config = gemma(meta, arch, names)
    return config | {
        "query_pre_attn_scalar": _score_scalar(meta, arch, config, large=62),
        "rope_local_base_freq": meta.number(f"{arch}.rope.freq_base_swa", 10000.0),
        "final_logit_softcapping": meta.number(f"{arch}.final_logit_softcapping", 0.0),
    }


def _score_scalar(meta: Fields, arch: str, config: dict[str, Any], large: int) -> float:
    """Scores are divided by its root: the size of a head, but of the largest model, which has
    `large` layers, the size of a head before it was widened."""
    if meta.integer(f"{arch}.block_count") == large:
        return float(meta.integer(f"{arch}.embedding_length") // config["num_attention_heads"])
    return float(config["head_dim"])


def granite(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    config = equal_layers(meta, arch, names)
    return config | {
        "attention_multiplier": meta.number(f"{arch}.attention.scale", config["head_dim"] ** -0.5),
        "embedding_multiplier": meta.number(f"{arch}.embedding_scale", 1.0),
        "residual_multiplier": meta.number(f"{arch}.residual_scale", 1.0),
        "logits_scaling": meta.number(f"{arch}.logit_scale", 1.0),
    }


def olmo(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    clip = meta.number(f"{arch}.attention.clamp_kqv", 0.0)
    return equal_layers(meta, arch, names) | {"clip_qkv": clip or None}


def olmo2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """OLMo 2, or OLMo 3 where the file has a window."""
    config = equal_layers(meta, arch, names)
    if "sliding_window" in config:
        config |= {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3"}
    return config


def smollm3(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return equal_layers(meta, arch, names) | {"no_rope_layer_interval": 4}


def cohere(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return equal_layers(meta, arch, names) | {
        "logit_scale": meta.number(f"{arch}.logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in names,
    }


def phi3(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    original = f"{arch}.rope.scaling.original_context_length"
    config = equal_layers(meta, arch, names)
    if meta.has(original):
        config["original_max_position_embeddings"] = meta.integer(original, least=1)
    return config


ARCHITECTURES: dict[str, Architecture] = {
    "cohere2": Architecture("Cohere2ForCausalLM", "cohere2", config=cohere),
    "command-r": Architecture("CohereForCausalLM", "cohere", config=cohere),
    "exaone": Architecture("LlamaForCausalLM", "llama"),
    "gemma": Architecture("GemmaForCausalLM", "gemma", norm_plus=1.0, config=gemma),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        "gemma2",
        in_layer=LLAMA_NAMES | GEMMA2_NAMES,
        norm_plus=1.0,
        config=gemma2,
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        in_layer=LLAMA_NAMES | GEMMA2_NAMES,
        norm_plus=1.0,
        config=gemma3,
    ),
    "glm4": Architecture("Glm4ForCausalLM", "glm4", in_layer=LLAMA_NAMES | GLM4_NAMES),
    "granite": Architecture("GraniteForCausalLM", "granite", interleaved_qk=True, config=granite),
    "internlm2": Architecture("LlamaForCausalLM", "llama", interleaved_qk=True),
    "mistral": Architecture("MistralForCausalLM", "mistral", interleaved_qk=True),
    "mistral3": Architecture("Ministral3ForCausalLM", "ministral3", interleaved_qk=True),
    "olmo": Architecture("OlmoForCausalLM", "olmo", interleaved_qk=True, config=olmo),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        "olmo2",
        in_layer=LLAMA_NAMES | OLMO2_NAMES,
        config=olmo2,
    ),
    "phi3": Architecture(
        "Phi3ForCausalLM",
        "phi3",
        in_layer=LLAMA_NAMES | PHI3_NAMES,
        config=phi3,
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2"),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3"),
    "smollm3": Architecture("SmolLM3ForCausalLM", "smollm3", interleaved_qk=True, config=smollm3),
}
