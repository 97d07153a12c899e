"""GGUF architectures with layer norms, and some that are Llama-like: config keys, tensor names.

As llama.cpp's convert_hf_to_gguf.py writes them.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from galley.errors import ModelError
from galley.loader.fields import Fields
from galley.loader.gguf_architecture import FINAL_LAYERNORM, LLAMA_NAMES, Architecture
from galley.loader.gguf_dense import equal_layers
from galley.loader.gguf_states import layer_types

_UP_DOWN = {"ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

GPT2_TOP = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
GPT2_NAMES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
GPT_NEOX_TOP = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "lm_head",
}
GPT_NEOX_NAMES = {
    **_UP_DOWN,
    **_NORMS,
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
}
BLOOM_TOP = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
BLOOM_NAMES = {
    **_UP_DOWN,
    **_NORMS,
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
}
#: Falcon 40B and 180B have two norms before their parallel blocks.
FALCON_SECOND_NORM = "blk.0.attn_norm_2.weight"
FALCON_40B_NAMES = {**BLOOM_NAMES, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}
EXAONE4_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
HUNYUAN_NAMES = {
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
}
PHI2_NAMES = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
SEED_OSS_NAMES = {"post_attention_norm": "post_attention_layernorm"}
STABLELM_NAMES = {
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
}
MPT_TOP = {
    "token_embd": "transformer.wte",
    "output_norm": "transformer.norm_f",
    "output": "lm_head",
}
MPT_NAMES = {
    "attn_norm": "norm_1",
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.out_proj",
    "ffn_norm": "norm_2",
    "ffn_up": "ffn.up_proj",
    "ffn_down": "ffn.down_proj",
}
STARCODER2_NAMES = {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}


def arcee(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    bias = "blk.0.ffn_up.bias" in names
    return {**equal_layers(meta, arch, names), "hidden_act": "relu2", "mlp_bias": bias}


def baichuan(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """llama.cpp too tells the 7B models, which rotate, from the 13B by their number of layers."""
    layers = meta.integer(f"{arch}.block_count", least=1)
    config = equal_layers(meta, arch, names)
    if layers == 32:
        return config
    if layers != 40:
        raise ModelError(f"{meta.where}: {arch} of {layers} layers is neither the 7B nor the 13B")
    return config | {"architectures": ["BaichuanForCausalLM"], "split_qkv": True}


def bloom(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return {**equal_layers(meta, arch, names), "hidden_act": "gelu_pytorch_tanh"}


def exaone4(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return equal_layers(meta, arch, names) | layer_types(meta, arch)


def falcon(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    config = equal_layers(meta, arch, names)
    kv_heads = meta.integer(f"{arch}.attention.head_count_kv", 1, least=1)
    two = FALCON_SECOND_NORM in names
    return {
        **config,
        "activation": "gelu",
        "ffn_hidden_size": config["intermediate_size"],
        "new_decoder_architecture": two or kv_heads > 1,
        "num_key_value_heads": kv_heads,
        "num_kv_heads": kv_heads,
        "num_ln_in_parallel_attn": 2 if two else 1,
    }


def gpt2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return {
        **equal_layers(meta, arch, names),
        "activation_function": "gelu_new",
        "transposed_weights": False,
    }


def gpt_neox(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return {
        **equal_layers(meta, arch, names),
        "hidden_act": "gelu",
        "attention_bias": "blk.0.attn_qkv.bias" in names,
        "use_parallel_residual": meta.flag(f"{arch}.use_parallel_residual", True),
    }


def minicpm(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Files of older converters have no factors: those of the first models."""
    layers = meta.integer(f"{arch}.block_count", least=1)
    hidden = meta.integer(f"{arch}.embedding_length", least=1)
    residual = meta.number(f"{arch}.residual_scale", 1.4 / layers**0.5)
    return {
        **equal_layers(meta, arch, names),
        "scale_emb": meta.number(f"{arch}.embedding_scale", 12.0),
        "scale_depth": residual * layers**0.5,
        "dim_model_base": hidden / meta.number(f"{arch}.logit_scale", hidden / 256),
    }


def mpt(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    config = equal_layers(meta, arch, names)
    if "position_embd.weight" in names:
        raise ModelError(f"{meta.where}: MPT with embeddings of positions is not supported")
    if any(name.startswith("blk.0.attn_q") and name.endswith("norm.weight") for name in names):
        raise ModelError(f"{meta.where}: MPT with norms of q and k is not supported")
    if config["num_key_value_heads"] != config["num_attention_heads"]:
        raise ModelError(f"{meta.where}: MPT with shared KV heads is not supported")
    return {
        **config,
        "hidden_act": "gelu",
        "no_bias": "blk.0.attn_qkv.bias" not in names,
        "expansion_ratio": config["intermediate_size"] // meta.integer(f"{arch}.embedding_length"),
        "attn_config": {
            "alibi_bias_max": meta.number(f"{arch}.attention.max_alibi_bias", 0.0) or 8.0,
            "clip_qkv": meta.number(f"{arch}.attention.clamp_kqv", 0.0) or None,
        },
    }


def starcoder(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    config = equal_layers(meta, arch, names)
    if meta.integer(f"{arch}.attention.head_count_kv", 1) != 1:
        raise ModelError(f"{meta.where}: {arch}.attention.head_count_kv other than 1")
    return {**config, "activation_function": "gelu_pytorch_tanh", "multi_query": True}


def nemotron(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return {
        **equal_layers(meta, arch, names),
        "hidden_act": "relu2",
        "mlp_bias": "blk.0.ffn_up.bias" in names,
    }


def phi2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Files of older converters have q, k and v in one tensor."""
    fused = "blk.0.attn_qkv.weight" in names
    return {**equal_layers(meta, arch, names), "hidden_act": "gelu_new", "fused_qkv": fused}


def seed_oss(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    out_bias = "blk.0.attn_output.bias" in names
    return {**equal_layers(meta, arch, names), "attention_out_bias": out_bias}


def stablelm(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return {
        **equal_layers(meta, arch, names),
        "use_qkv_bias": "blk.0.attn_q.bias" in names,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in names,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in names,
        "stacked_head_norms": True,
    }


def starcoder2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return {
        **equal_layers(meta, arch, names),
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": "blk.0.attn_q.bias" in names,
    }


_FALCON = Architecture(
    "FalconForCausalLM",
    "falcon",
    top=BLOOM_TOP,
    in_layer=BLOOM_NAMES,
    layers="transformer.h",
    config=falcon,
    joined_qkv=True,
)

ARCHITECTURES: dict[str, Architecture] = {
    "arcee": Architecture("ArceeForCausalLM", "arcee", interleaved_qk=True, config=arcee),
    "baichuan": Architecture("LlamaForCausalLM", "llama", interleaved_qk=True, config=baichuan),
    "bloom": Architecture(
        "BloomForCausalLM",
        "bloom",
        top=BLOOM_TOP,
        in_layer=BLOOM_NAMES,
        layers="transformer.h",
        config=bloom,
        joined_qkv=True,
    ),
    "exaone4": Architecture(
        "Exaone4ForCausalLM",
        "exaone4",
        in_layer=LLAMA_NAMES | EXAONE4_NAMES,
        config=exaone4,
    ),
    "falcon": replace(
        _FALCON, where=(FALCON_SECOND_NORM, replace(_FALCON, in_layer=FALCON_40B_NAMES))
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        top=GPT2_TOP,
        in_layer=GPT2_NAMES,
        layers="transformer.h",
        config=gpt2,
    ),
    "gptneox": Architecture(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        top=GPT_NEOX_TOP,
        in_layer=GPT_NEOX_NAMES,
        layers="gpt_neox.layers",
        config=gpt_neox,
        joined_qkv=True,
    ),
    "hunyuan-dense": Architecture(
        "HunYuanDenseV1ForCausalLM",
        "hunyuan_v1_dense",
        in_layer=LLAMA_NAMES | HUNYUAN_NAMES,
    ),
    "jais2": Architecture("Jais2ForCausalLM", "jais2", config=nemotron),
    "minicpm": Architecture("MiniCPMForCausalLM", "minicpm", interleaved_qk=True, config=minicpm),
    "mpt": Architecture(
        "MptForCausalLM",
        "mpt",
        top=MPT_TOP,
        in_layer=MPT_NAMES,
        layers="transformer.blocks",
        config=mpt,
    ),
    "nemotron": Architecture("NemotronForCausalLM", "nemotron", norm_plus=1.0, config=nemotron),
    "phi2": Architecture(
        "PhiForCausalLM",
        "phi",
        top=FINAL_LAYERNORM,
        in_layer=LLAMA_NAMES | PHI2_NAMES,
        config=phi2,
    ),
    "seed_oss": Architecture(
        "SeedOssForCausalLM",
        "seed_oss",
        in_layer=LLAMA_NAMES | SEED_OSS_NAMES,
        config=seed_oss,
    ),
    "stablelm": Architecture(
        "StableLmForCausalLM",
        "stablelm",
        in_layer=LLAMA_NAMES | STABLELM_NAMES,
        config=stablelm,
    ),
    "starcoder": Architecture(
        "GPTBigCodeForCausalLM",
        "gpt_bigcode",
        top=GPT2_TOP,
        in_layer=GPT2_NAMES,
        layers="transformer.h",
        config=starcoder,
    ),
    "starcoder2": Architecture(
        "Starcoder2ForCausalLM",
        "starcoder2",
        in_layer=LLAMA_NAMES | STARCODER2_NAMES,
        config=starcoder2,
    ),
}
