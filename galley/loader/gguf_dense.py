"""GGUF architectures of decoders with attention: what differs from Llama in keys and tensor names.

Constants of llama.cpp's code that no file holds are here: patterns of windows, rotary bases
of layers with a window, the scale of scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from galley.errors import ModelError
from galley.loader.fields import MAX_HEAD_DIM, MAX_LAYERS, Fields
from galley.loader.gguf_architecture import LLAMA_NAMES, LLAMA_TOP, Architecture
from galley.loader.gguf_states import attention, per_layer

_SANDWICH = {"post_ffw_norm": "post_feedforward_layernorm"}
GEMMA2_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    **_SANDWICH,
}
GEMMA4_EXPERTS = {
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    **{f"ffn_{name}_exps": f"experts.{{}}.{name}_proj" for name in ("gate", "up", "down")},
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


def deci(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Layers without heads have no attention, those of a size of 0 no feed-forward block."""
    own = attention(meta, arch)
    heads, kv_heads, sizes = (
        per_layer(meta, arch, key)
        for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    )
    if any(n and not kv for n, kv in zip(heads, kv_heads, strict=True)):
        raise ModelError(f"{meta.where}: {arch}: linear layers as attention are not supported")
    group = own["num_attention_heads"] // own["num_key_value_heads"]
    return own | {
        "block_configs": [
            {
                "attention": {"n_heads_in_group": group} if kv else {"no_op": True},
                "ffn": {"intermediate_size": size} if size else {"no_op": True},
            }
            for kv, size in zip(kv_heads, sizes, strict=True)
        ]
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


_XIELU = ("alpha_p", "alpha_n", "beta", "eps")


def xielu_parameters(meta: Fields, arch: str) -> dict[str, np.ndarray]:
    """The tensors of Apertus's activation, which the file has as numbers for each layer."""
    layers = meta.integer(f"{arch}.block_count", least=1, most=MAX_LAYERS)
    tensors: dict[str, np.ndarray] = {}
    for name in _XIELU:
        values = meta.values.get(f"xielu.{name}")
        if not isinstance(values, np.ndarray):
            values = np.full(layers, meta.number(f"xielu.{name}"))
        if values.shape != (layers,) or values.dtype.kind != "f":
            raise ModelError(f"{meta.where}: xielu.{name} is not a number for each layer")
        for i, value in enumerate(values):
            shape = (1,) if name.startswith("alpha") else ()
            array = np.full(shape, value, np.float32)
            tensors[f"model.layers.{i}.mlp.act_fn.{name}"] = array
    return tensors


def apertus(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return equal_layers(meta, arch, names) | {"hidden_act": "xielu"}


def chatglm(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Files of GLM-4's first checkpoints have q, k and v in one tensor."""
    config = equal_layers(meta, arch, names)
    fused = "blk.0.attn_qkv.weight" in names
    bias = "blk.0.attn_qkv.bias" in names or "blk.0.attn_q.bias" in names
    return config | {"fused_qkv": fused, "attention_bias": bias}


def ernie(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return equal_layers(meta, arch, names) | {"use_bias": "blk.0.attn_q.bias" in names}


def minicpm3(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Files of older converters have no factors: those of the first models."""
    layers = meta.integer(f"{arch}.block_count", least=1)
    residual = meta.number(f"{arch}.residual_scale", 1.4 / layers**0.5)
    heads = same_in_all_layers(meta, f"{arch}.attention.head_count")
    hidden = meta.integer(f"{arch}.embedding_length", least=1)
    rope = meta.integer(f"{arch}.rope.dimension_count", least=2)
    value = meta.integer(f"{arch}.attention.value_length", hidden // heads, least=1)
    return {
        "intermediate_size": same_in_all_layers(meta, f"{arch}.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": meta.integer(f"{arch}.attention.q_lora_rank", 0) or None,
        "kv_lora_rank": meta.integer(f"{arch}.attention.kv_lora_rank", least=2),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": meta.integer(f"{arch}.attention.key_length", least=rope + 1) - rope,
        "v_head_dim": value,
        "scale_emb": meta.number(f"{arch}.embedding_scale", 12.0),
        "scale_depth": residual * layers**0.5,
        "dim_model_base": hidden / meta.number(f"{arch}.logit_scale", hidden / 256),
    }


def _gemma4_experts(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    if not any("ffn_gate_inp" in name for name in names):
        return {}
    return {
        "enable_moe_block": True,
        "num_experts": meta.integer(f"{arch}.expert_count", least=1),
        "top_k_experts": meta.integer(f"{arch}.expert_used_count", least=1),
        "moe_intermediate_size": meta.integer(f"{arch}.expert_feed_forward_length", least=1),
    }


def gemma4(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Layers with a window have heads and rotary embeddings of their own; the last layers read the
    caches of earlier ones."""
    layers = meta.integer(f"{arch}.block_count", least=1, most=MAX_LAYERS)
    slides = meta.values.get(f"{arch}.attention.sliding_window_pattern")
    if not isinstance(slides, np.ndarray) or slides.shape != (layers,):
        raise ModelError(f"{meta.where}: {arch}.attention.sliding_window_pattern is missing")
    kv_heads = _of_layers(meta, f"{arch}.attention.head_count_kv", layers)
    sizes = _of_layers(meta, f"{arch}.feed_forward_length", layers)
    shared = meta.integer(f"{arch}.attention.shared_kv_layers", 0)
    full = next((i for i in range(layers) if not slides[i]), 0)
    windowed = next((i for i in range(layers) if slides[i]), 0)
    head_dim = meta.integer(f"{arch}.attention.key_length", least=2, most=MAX_HEAD_DIM)
    theta = meta.number(f"{arch}.rope.freq_base", 1e6)
    plain = {"rope_type": "default", "rope_theta": theta}
    factors = meta.values.get("rope_freqs.weight")
    return {
        **_gemma4_experts(meta, arch, names),
        "hidden_activation": "gelu_pytorch_tanh",
        "intermediate_size": sizes[0],
        "use_double_wide_mlp": sizes[-1] != sizes[0],
        "num_attention_heads": same_in_all_layers(meta, f"{arch}.attention.head_count"),
        "num_key_value_heads": kv_heads[windowed],
        "num_global_key_value_heads": kv_heads[full],
        "head_dim": meta.integer(f"{arch}.attention.key_length_swa", head_dim, least=2),
        "global_head_dim": head_dim,
        "attention_k_eq_v": f"blk.{full}.attn_v.weight" not in names,
        "sliding_window": meta.integer(f"{arch}.attention.sliding_window", least=1),
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": meta.integer(f"{arch}.embedding_length_per_layer_input", 0),
        "final_logit_softcapping": meta.number(f"{arch}.final_logit_softcapping", 0.0),
        "rope_theta": None,
        "rope_parameters": {
            "full_attention": plain
            if factors is None
            else {"rope_type": "frequency_factors", "rope_theta": theta, "factors": factors},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": meta.number(f"{arch}.rope.freq_base_swa", 10000.0),
            },
        },
    }


def gemma3n(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """The cut of sparse layers is stored in standard deviations; minus infinity = none."""
    from statistics import NormalDist  # takes 7 ms of each start from GGUF

    layers = meta.integer(f"{arch}.block_count", least=1, most=MAX_LAYERS)
    slides = meta.values.get(f"{arch}.attention.sliding_window_pattern")
    cuts = meta.values.get(f"{arch}.activation_sparsity_scale")
    for key, value in (
        ("attention.sliding_window_pattern", slides),
        ("activation_sparsity_scale", cuts),
    ):
        if not isinstance(value, np.ndarray) or value.shape != (layers,):
            raise ModelError(f"{meta.where}: {arch}.{key} is not a value for each layer")
    assert isinstance(slides, np.ndarray)
    assert isinstance(cuts, np.ndarray)
    head_dim = meta.integer(f"{arch}.attention.key_length", least=2, most=MAX_HEAD_DIM)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "intermediate_size": _of_layers(meta, f"{arch}.feed_forward_length", layers),
        "num_attention_heads": same_in_all_layers(meta, f"{arch}.attention.head_count"),
        "num_key_value_heads": same_in_all_layers(meta, f"{arch}.attention.head_count_kv"),
        "head_dim": head_dim,
        "sliding_window": meta.integer(f"{arch}.attention.sliding_window", least=1),
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "num_kv_shared_layers": meta.integer(f"{arch}.attention.shared_kv_layers", 0),
        "hidden_size_per_layer_input": meta.integer(
            f"{arch}.embedding_length_per_layer_input", 256, least=1
        ),
        "altup_num_inputs": meta.integer(f"{arch}.altup.num_inputs", 4, least=2),
        "altup_active_idx": meta.integer(f"{arch}.altup.active_idx", 0),
        "activation_sparsity_pattern": [
            NormalDist().cdf(float(cut)) if np.isfinite(cut) else 0.0 for cut in cuts
        ],
        "final_logit_softcapping": meta.number(f"{arch}.final_logit_softcapping", 30.0),
        "vocab_size_per_layer_input": None,
        "rope_theta": None,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": meta.number(f"{arch}.rope.freq_base", 1e6),
            },
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": meta.number(f"{arch}.rope.freq_base_swa", 10000.0),
            },
        },
    }


def _of_layers(meta: Fields, key: str, layers: int) -> list[int]:
    """A number that is written once or per layer."""
    value = meta.values.get(key)
    if not isinstance(value, np.ndarray):
        return [meta.integer(key, least=1)] * layers
    if value.shape != (layers,) or value.dtype.kind not in "iu" or (value < 1).any():
        raise ModelError(f"{meta.where}: {key} is not a number for each layer")
    return [int(n) for n in value]


_LAYER_INPUTS = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "layer_output_scale.weight": "layer_scalar",
}
_LAYER_EMBEDDINGS = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
_STREAMS = {
    "altup_proj": "model.altup_projections.{}",
    "altup_unembd_proj": "model.altup_unembed_projections.{}",
}
GEMMA3N_NAMES = {
    "altup_correct_coef": "altup.correction_coefs",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}
MINICPM3_NAMES = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}

ARCHITECTURES: dict[str, Architecture] = {
    "apertus": Architecture(
        "ApertusForCausalLM",
        "apertus",
        in_layer=LLAMA_NAMES
        | {"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"},
        config=apertus,
        computed=xielu_parameters,
    ),
    "chatglm": Architecture(
        "GlmForCausalLM",
        "glm",
        in_layer=LLAMA_NAMES | PHI3_NAMES,
        config=chatglm,
    ),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", "ernie4_5", config=ernie),
    "gemma3n": Architecture(
        "Gemma3nForCausalLM",
        "gemma3n_text",
        top=LLAMA_TOP | _LAYER_EMBEDDINGS | _STREAMS,
        in_layer=LLAMA_NAMES | GEMMA2_NAMES | _LAYER_INPUTS | GEMMA3N_NAMES,
        config=gemma3n,
    ),
    "gemma4": Architecture(
        "Gemma4ForCausalLM",
        "gemma4_text",
        top=LLAMA_TOP | _LAYER_EMBEDDINGS,
        in_layer=LLAMA_NAMES | GEMMA2_NAMES | _LAYER_INPUTS | GEMMA4_EXPERTS,
        split={"ffn_gate_up_exps": ("experts.{}.gate_proj", "experts.{}.up_proj")},
        config=gemma4,
    ),
    "deci": Architecture("DeciLMForCausalLM", "nemotron-nas", interleaved_qk=True, config=deci),
    "minicpm3": Architecture(
        "MiniCPM3ForCausalLM", "minicpm3", in_layer=LLAMA_NAMES | MINICPM3_NAMES, config=minicpm3
    ),
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
    "qwen2vl": Architecture("Qwen2ForCausalLM", "qwen2"),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        "qwen3",
        top={**LLAMA_TOP, "cls.output": "score"},  # of rerankers
    ),
    "qwen3vl": Architecture("Qwen3ForCausalLM", "qwen3"),
    "smollm3": Architecture("SmolLM3ForCausalLM", "smollm3", interleaved_qk=True, config=smollm3),
}
