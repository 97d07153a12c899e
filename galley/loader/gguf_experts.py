"""GGUF architectures with experts, or with latent attention: their config keys and tensor names.

The experts of a layer are one tensor in the file ([experts, outputs, inputs]); in the checkpoint
they are tensors of their own, whose number stands for "{}" in these names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from galley.errors import ModelError
from galley.loader.fields import Fields
from galley.loader.gguf_architecture import ATTENTION_NAMES, LLAMA_TOP, MLP_NAMES, Architecture
from galley.loader.gguf_states import attention, layer_types, per_layer

_ATTENTION = {**ATTENTION_NAMES, "post_attention_norm": "post_attention_layernorm"}


def _experts(
    prefix: str, names: Iterable[str] = ("gate_proj", "up_proj", "down_proj")
) -> dict[str, str]:
    stored = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    return {s: f"{prefix}.{{}}.{name}" for s, name in zip(stored, names, strict=True)}


def _shared(prefix: str) -> dict[str, str]:
    return {f"ffn_{name}_shexp": f"{prefix}.{name}_proj" for name in ("gate", "up", "down")}


QWEN_NAMES = {
    **_ATTENTION,
    **MLP_NAMES,
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **_experts("mlp.experts"),
    **_shared("mlp.shared_expert"),
}
_W = ("w1", "w3", "w2")
MIXTRAL_NAMES = {
    **_ATTENTION,
    "ffn_gate_inp": "block_sparse_moe.gate",
    "exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias",
    **_experts("block_sparse_moe.experts", _W),
}
GRANITE_NAMES = {
    **_ATTENTION,
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    **_experts("block_sparse_moe.experts"),
    "ffn_down_shexp": "shared_mlp.output_linear",
}
GRANITE_FUSED = {"shared_mlp.input_linear": ("ffn_gate_shexp", "ffn_up_shexp")}
#: Of layers that predict further tokens; models ignore them by the number of the layer.
_NEXT = ("eh_proj", "embed_tokens", "enorm", "hnorm", "shared_head_head", "shared_head_norm")
GLM_NAMES = {
    **_ATTENTION,
    **MLP_NAMES,
    **{f"nextn.{name}": f"nextn.{name}" for name in _NEXT},
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    **_experts("mlp.experts"),
    **_shared("mlp.shared_experts"),
}
DEEPSEEK_NAMES = {
    **GLM_NAMES,
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj.{}",
    "attn_v_b": "self_attn.v_b_proj.{}",
}
#: With what chooses the tokens to attend to, which is not used.
DSA_NAMES = {
    **DEEPSEEK_NAMES,
    **{
        f"indexer.{name}": f"self_attn.indexer.{name}"
        for name in ("k_norm", "proj", "attn_k", "attn_q_b")
    },
}
#: Of both kinds of attention.
KIMI_NAMES = {
    **ATTENTION_NAMES,
    **MLP_NAMES,
    **{name: own for name, own in DEEPSEEK_NAMES.items() if name.startswith("attn_kv")},
    **{f"attn_{kind}_b": f"self_attn.{kind}_b_proj.{{}}" for kind in "kv"},
    **{f"ssm_conv1d_{kind}": f"self_attn.{kind}_conv1d" for kind in "qkv"},
    **{f"ssm_{part}": f"self_attn.{part}_proj" for part in ("f_a", "f_b", "g_a", "g_b")},
    "ssm_beta": "self_attn.b_proj",
    "ssm_a": "self_attn.A_log",
    "ssm_dt.bias": "self_attn.dt_bias",
    "ssm_norm": "self_attn.o_norm",
    "ffn_gate_inp": "block_sparse_moe.gate",
    "exp_probs_b.bias": "block_sparse_moe.gate.e_score_correction_bias",
    **_experts("block_sparse_moe.experts", _W),
    **_shared("block_sparse_moe.shared_experts"),
}
ERNIE_NAMES = {
    **GLM_NAMES,
    "exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias",
}
EXAONE_NAMES = {**GLM_NAMES, "exp_probs_b.bias": "mlp.e_score_correction_bias"}
AFMOE_NAMES = {
    **_ATTENTION,
    **MLP_NAMES,
    "attn_gate": "self_attn.gate_proj",
    "ffn_norm": "pre_mlp_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
    "ffn_gate_inp": "mlp.router.gate",
    "exp_probs_b.bias": "mlp.expert_bias",
    **_experts("mlp.experts"),
    **_shared("mlp.shared_experts"),
}
BAILING_NAMES = {
    **GLM_NAMES,
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "attn_q_norm": "attention.query_layernorm",
    "attn_k_norm": "attention.key_layernorm",
    "exp_probs_b.bias": "mlp.gate.expert_bias",
}
HUNYUAN_NAMES = {
    **_ATTENTION,
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
    "ffn_gate_inp": "mlp.gate.wg",
    **_experts("mlp.experts"),
    **_shared("mlp.shared_mlp"),
}
LLAMA4_NAMES = {
    **_ATTENTION,
    **{f"ffn_{name}": f"feed_forward.{name}_proj" for name in ("gate", "up", "down")},
    "ffn_gate_inp": "feed_forward.router",
    **_experts("feed_forward.experts"),
    **_shared("feed_forward.shared_expert"),
}
GPT_OSS_NAMES = {
    **_ATTENTION,
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    **_experts("mlp.experts"),
}


def _counts(meta: Fields, arch: str) -> dict[str, Any]:
    return {
        "num_local_experts": meta.integer(f"{arch}.expert_count", least=1),
        "num_experts_per_tok": meta.integer(f"{arch}.expert_used_count", least=1),
    }


def _gating(meta: Fields, arch: str, allowed: int) -> None:
    """Check the score function: 1 softmax, 2 sigmoid, 3 softmax of the chosen."""
    function = meta.integer(f"{arch}.expert_gating_func", allowed) or allowed
    if function != allowed:
        raise ModelError(f"{meta.where}: {arch}.expert_gating_func {function} is not supported")


def mixtral(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    _gating(meta, arch, 1)
    window = meta.integer(f"{arch}.attention.sliding_window", 0)
    return {
        **attention(meta, arch),
        **_counts(meta, arch),
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", least=1),
        **({"sliding_window": window} if window else {}),
    }


def phimoe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """The routing is the family's, not llama.cpp's, which has a softmax over all experts."""
    bias, head_bias = "blk.0.attn_q.bias" in names, "output.bias" in names
    return {**mixtral(meta, arch, names), "attention_bias": bias, "lm_head_bias": head_bias}


def minimax_m2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    _gating(meta, arch, 2)
    own = mixtral(Fields({**meta.values, f"{arch}.expert_gating_func": 1}, meta.where), arch, names)
    size = meta.integer(f"{arch}.expert_feed_forward_length", own["intermediate_size"], least=1)
    return {**own, "intermediate_size": size}


def qwen2_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    shared = f"{arch}.expert_shared_feed_forward_length"
    return {
        **_qwen(meta, arch, names),
        "shared_expert_intermediate_size": meta.integer(shared, least=1),
        "norm_topk_prob": False,
        "qkv_bias": "blk.0.attn_q.bias" in names,
    }


def qwen3_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    bias = "blk.0.attn_q.bias" in names
    return {**_qwen(meta, arch, names), "norm_topk_prob": True, "attention_bias": bias}


def _qwen(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    sparse = {int(i) for name in names for i in re.findall(r"blk\.(\d+)\.ffn_gate_exps\.", name)}
    layers = meta.integer(f"{arch}.block_count", least=1)
    size = meta.integer(f"{arch}.expert_feed_forward_length", least=1)
    return {
        **attention(meta, arch),
        **_counts(meta, arch),
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", size, least=1),
        "moe_intermediate_size": size,
        "mlp_only_layers": [i for i in range(layers) if i not in sparse],
    }


def olmoe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    own = mixtral(meta, arch, names)
    size = meta.integer(f"{arch}.expert_feed_forward_length", own["intermediate_size"], least=1)
    return {**own, "intermediate_size": size, "norm_topk_prob": False}


def granite_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return {
        **attention(meta, arch),
        **_counts(meta, arch),
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", least=1),
        "shared_intermediate_size": meta.integer(f"{arch}.expert_shared_feed_forward_length", 0),
        "attention_multiplier": meta.number(f"{arch}.attention.scale", 1.0),
        "embedding_multiplier": meta.number(f"{arch}.embedding_scale", 1.0),
        "residual_multiplier": meta.number(f"{arch}.residual_scale", 1.0),
        "logits_scaling": meta.number(f"{arch}.logit_scale", 1.0),
    }


def ernie_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    _gating(meta, arch, 1)
    size = meta.integer(f"{arch}.expert_feed_forward_length", least=1)
    shared = meta.integer(f"{arch}.expert_shared_feed_forward_length", 0)
    if not shared and "blk.1.ffn_up_shexp.weight" in names:
        shared = size * meta.integer(f"{arch}.expert_shared_count", 0)
    if shared % size:
        raise ModelError(f"{meta.where}: {arch}.expert_shared_feed_forward_length is no multiple")
    return {
        **attention(meta, arch),
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", least=1),
        "moe_num_experts": meta.integer(f"{arch}.expert_count", least=1),
        "moe_k": meta.integer(f"{arch}.expert_used_count", least=1),
        "moe_intermediate_size": size,
        "moe_num_shared_experts": shared // size,
        "moe_layer_start_index": meta.integer(f"{arch}.leading_dense_block_count", 0),
        "moe_layer_interval": meta.integer(f"{arch}.interleave_moe_layer_step", 1, least=1),
    }


def llama4(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Constants of llama.cpp's code: parts of 8192 tokens, each fourth layer without positions,
    the growth of its scores, and no norms of q and k in models with 128 experts."""
    experts = meta.integer(f"{arch}.expert_count", 0)
    dense = meta.integer(f"{arch}.feed_forward_length", least=1)
    every = f"{arch}.attention.sliding_window"
    return {
        **attention(meta, arch),
        "num_local_experts": experts or 1,
        "num_experts_per_tok": meta.integer(f"{arch}.expert_used_count", 1, least=1),
        "intermediate_size": meta.integer(f"{arch}.expert_feed_forward_length", dense, least=1),
        "intermediate_size_mlp": dense,
        "interleave_moe_layer_step": meta.integer(f"{arch}.interleave_moe_layer_step", 1, least=1),
        "moe_layers": None if experts else [],
        "no_rope_layer_interval": 4,
        "attention_chunk_size": meta.integer(every, 8192) or 8192,
        "attn_temperature_tuning": True,
        "attn_scale": meta.number(f"{arch}.attention.temperature_scale", 0.1),
        "floor_scale": meta.integer(f"{arch}.attention.temperature_length", 8192) or 8192,
        "use_qk_norm": experts != 128,
    }


def glm4_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Layers that predict further tokens are the last of the file."""
    layers = meta.integer(f"{arch}.block_count", least=1)
    return {
        **attention(meta, arch),
        **_deepseek_experts(meta, arch, 2),
        "num_hidden_layers": layers - meta.integer(f"{arch}.nextn_predict_layers", 0),
        "attention_bias": "blk.0.attn_q.bias" in names,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in names,
    }


def exaone_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return {
        **glm4_moe(meta, arch, names),
        **layer_types(meta, arch),
        "sliding_window": meta.integer(f"{arch}.attention.sliding_window", least=1),
    }


def dots1(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    own = {**attention(meta, arch), **_deepseek_experts(meta, arch, 2)}
    return {**own, "attention_bias": "blk.0.attn_q.bias" in names}


def deepseek2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """V2 has softmax scores, V3 sigmoid ones."""
    return _latent(meta, arch, gating=1)


def _latent(meta: Fields, arch: str, gating: int) -> dict[str, Any]:
    """`gating`: where the file does not say which scores experts have."""
    heads = meta.integer(f"{arch}.attention.head_count", least=1)
    rope = meta.integer(f"{arch}.rope.dimension_count", least=2)
    # Files made for absorbed attention have the sizes of the latent under the plain keys.
    key, value = (
        meta.integer(
            f"{arch}.attention.{name}_length_mla",
            meta.integer(f"{arch}.attention.{name}_length", least=1),
            least=1,
        )
        for name in ("key", "value")
    )
    is_v3 = meta.integer(f"{arch}.expert_gating_func", gating) == 2
    q_rank = meta.integer(f"{arch}.attention.q_lora_rank", 0)
    return {
        **_deepseek_experts(meta, arch, 2 if is_v3 else 1),
        "architectures": ["DeepseekV3ForCausalLM" if is_v3 else "DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": q_rank or None,
        "kv_lora_rank": meta.integer(f"{arch}.attention.kv_lora_rank", least=2),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": value,
        "rope_scaling": _deepseek_yarn(meta, arch),
    }


def deepseek32(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """V3 with sparse attention, also GLM 5; layers that predict further tokens are the last of the
    file."""
    own = deepseek2(meta, arch, names)
    del own["architectures"], own["model_type"]
    layers = meta.integer(f"{arch}.block_count", least=1)
    return {
        **own,
        "num_hidden_layers": layers - meta.integer(f"{arch}.nextn_predict_layers", 0),
        "index_topk": meta.integer(f"{arch}.attention.indexer.top_k", 2048, least=1),
    }


def kimi_linear(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Layers without KV heads have Kimi delta attention, of as many heads as the others."""
    own = _latent(meta, arch, gating=2)
    del own["architectures"], own["model_type"]
    kv_heads = per_layer(meta, arch, "attention.head_count_kv")
    return {
        **own,
        "layer_types": ["full_attention" if n else "linear_attention" for n in kv_heads],
        "linear_num_heads": own["num_attention_heads"],
        "linear_head_dim": meta.integer(f"{arch}.kda.head_dim", least=2),
        "linear_conv_kernel_dim": meta.integer(f"{arch}.ssm.conv_kernel", least=2),
        "norm_topk_prob": True,
    }


def _deepseek_yarn(meta: Fields, arch: str) -> dict[str, Any] | None:
    key = f"{arch}.rope.scaling"
    if meta.text(f"{key}.type", "none") != "yarn":
        return None
    mscale = meta.number(f"{key}.yarn_log_multiplier", 0.0) / 0.1
    return {
        "rope_type": "yarn",
        "factor": meta.number(f"{key}.factor"),
        "original_max_position_embeddings": meta.integer(f"{key}.original_context_length", least=1),
        **({"mscale": mscale, "mscale_all_dim": mscale} if mscale else {}),
    }


def _deepseek_experts(meta: Fields, arch: str, gating: int) -> dict[str, Any]:
    _gating(meta, arch, gating)
    groups = meta.integer(f"{arch}.expert_group_count", 1) or 1
    return {
        "n_routed_experts": meta.integer(f"{arch}.expert_count", least=1),
        "num_experts_per_tok": meta.integer(f"{arch}.expert_used_count", least=1),
        "n_shared_experts": meta.integer(f"{arch}.expert_shared_count", 0),
        "n_group": groups,
        "topk_group": meta.integer(f"{arch}.expert_group_used_count", 1) or 1,
        "topk_method": "group_limited_greedy" if gating == 1 and groups > 1 else "greedy",
        "norm_topk_prob": meta.flag(f"{arch}.expert_weights_norm", False),
        "routed_scaling_factor": meta.number(f"{arch}.expert_weights_scale", 1.0) or 1.0,
        "first_k_dense_replace": meta.integer(f"{arch}.leading_dense_block_count", 0),
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", least=1),
        "moe_intermediate_size": meta.integer(f"{arch}.expert_feed_forward_length", least=1),
    }


def afmoe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Each fourth layer sees all tokens; embeddings are scaled."""
    own = _deepseek_experts(meta, arch, 2)
    return {
        **attention(meta, arch),
        **own,
        "num_shared_experts": own["n_shared_experts"],
        "num_dense_layers": own["first_k_dense_replace"],
        "route_scale": own["routed_scaling_factor"],
        "sliding_window": meta.integer(f"{arch}.attention.sliding_window", least=1),
        "mup_enabled": True,
    }


def bailing_moe_v2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    own = glm4_moe(meta, arch, names)
    return {
        **own,
        "num_experts": own["n_routed_experts"],
        "num_shared_experts": own["n_shared_experts"],
        "use_qkv_bias": "blk.0.attn_qkv.bias" in names,
        "num_nextn_predict_layers": meta.integer(f"{arch}.nextn_predict_layers", 0),
    }


def hunyuan_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """The rotary base of the file takes account of a scaling."""
    size = meta.integer(f"{arch}.expert_feed_forward_length", least=1)
    shared = meta.integer(f"{arch}.expert_shared_feed_forward_length", size)
    if shared != size:
        raise ModelError(f"{meta.where}: experts of {size} beside one of {shared}")
    return {**attention(meta, arch), **_counts(meta, arch), "intermediate_size": size}


def gpt_oss(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Every other layer has the window, from the first on."""
    layers = meta.integer(f"{arch}.block_count", least=1)
    kinds = ["sliding_attention", "full_attention"]
    return {
        **attention(meta, arch),
        **_counts(meta, arch),
        "intermediate_size": meta.integer(f"{arch}.expert_feed_forward_length", least=1),
        "sliding_window": meta.integer(f"{arch}.attention.sliding_window", least=1),
        "layer_types": [kinds[i % 2] for i in range(layers)],
        "attention_bias": True,
    }


#: Mixtral, whose files are called llama.
MIXTRAL = Architecture(
    "MixtralForCausalLM",
    "mixtral",
    interleaved_qk=True,
    in_layer=MIXTRAL_NAMES,
    config=mixtral,
)

_QWEN3_MOE = Architecture("Qwen3MoeForCausalLM", "qwen3_moe", in_layer=QWEN_NAMES, config=qwen3_moe)

ARCHITECTURES: dict[str, Architecture] = {
    "afmoe": Architecture("AfmoeForCausalLM", "afmoe", in_layer=AFMOE_NAMES, config=afmoe),
    "bailingmoe2": Architecture(
        "BailingMoeV2ForCausalLM",
        "bailing_moe_v2",
        top={**LLAMA_TOP, "token_embd": "model.word_embeddings"},
        in_layer=BAILING_NAMES,
        config=bailing_moe_v2,
    ),
    "deepseek2": Architecture(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        in_layer=DEEPSEEK_NAMES,
        config=deepseek2,
    ),
    "deepseek32": Architecture(
        "DeepseekV32ForCausalLM", "deepseek_v32", in_layer=DSA_NAMES, config=deepseek32
    ),
    "glm-dsa": Architecture(
        "GlmMoeDsaForCausalLM", "glm_moe_dsa", in_layer=DSA_NAMES, config=deepseek32
    ),
    "dots1": Architecture("Dots1ForCausalLM", "dots1", in_layer=GLM_NAMES, config=dots1),
    "ernie4_5-moe": Architecture(
        "Ernie4_5_MoeForCausalLM", "ernie4_5_moe", in_layer=ERNIE_NAMES, config=ernie_moe
    ),
    "exaone-moe": Architecture(
        "ExaoneMoeForCausalLM", "exaone_moe", in_layer=EXAONE_NAMES, config=exaone_moe
    ),
    "glm4moe": Architecture(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        in_layer=GLM_NAMES,
        config=glm4_moe,
    ),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        "gpt_oss",
        in_layer=GPT_OSS_NAMES,
        config=gpt_oss,
    ),
    "granitemoe": Architecture(
        "GraniteMoeSharedForCausalLM",
        "granitemoeshared",
        interleaved_qk=True,
        in_layer=GRANITE_NAMES,
        fused=GRANITE_FUSED,
        config=granite_moe,
    ),
    "hunyuan-moe": Architecture(
        "HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", in_layer=HUNYUAN_NAMES, config=hunyuan_moe
    ),
    "kimi-linear": Architecture(
        "KimiLinearForCausalLM", "kimi_linear", in_layer=KIMI_NAMES, config=kimi_linear
    ),
    "llama4": Architecture(
        "Llama4ForCausalLM", "llama4_text", in_layer=LLAMA4_NAMES, config=llama4
    ),
    "minimax-m2": Architecture(
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        in_layer=MIXTRAL_NAMES,
        config=minimax_m2,
    ),
    "olmoe": Architecture("OlmoeForCausalLM", "olmoe", in_layer=QWEN_NAMES, config=olmoe),
    "phimoe": Architecture("PhiMoEForCausalLM", "phimoe", in_layer=MIXTRAL_NAMES, config=phimoe),
    "qwen2moe": Architecture(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        in_layer=QWEN_NAMES,
        config=qwen2_moe,
    ),
    "qwen3moe": _QWEN3_MOE,
    "qwen3vlmoe": _QWEN3_MOE,
}
